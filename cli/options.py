"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute.approaches.registry import descriptions, is_registered
from compute.approaches.registry import names as approach_names

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from compute.approaches.options import PredictionOptions
    from compute.cluster.options import ClusterOptions
    from compute.generation.machine import Machine
    from compute.labels.answer_labels import LabelOptions

METRICS = ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd", "tf-idf", "wd", "kl", "js")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

bank_option = click.option(
    "--bank",
    "bank_path",
    type=click.Path(path_type=Path),
    envvar="BANK_PATH",
    default=Path("bank"),
    show_default=True,
    show_envvar=True,
    help="The bank's folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an adapter that is already there.")
memory_option = click.option(
    "--memory",
    metavar="SIZE",
    help="Memory that the work may use, such as 4GiB; half of the machine's if not given.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["source", "float32", "float16", "bfloat16"]),
    default="source",
    show_default=True,
    help="Of the written weights; 'source' is that of the adapters combined.",
)


def together(*decorators: Decorator) -> Decorator:
    """Apply several options as one."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse what is no number, which no range does."""
    if value is not None and math.isnan(value):
        raise click.BadParameter(f"expected a number, found {value}")
    return value


cluster_options = together(
    click.option("--scheduler", metavar="ADDRESS", help="Run on the Dask scheduler at this address."),
    click.option(
        "--scheduler-file",
        type=click.Path(path_type=Path),
        help="Run on the Dask scheduler that left its address in this file.",
    ),
    *(
        click.option(
            f"--tls-{name}", type=click.Path(path_type=Path), help=f"Of a scheduler at tls://: {what}."
        )
        for name, what in (
            ("ca", "PEM file of the authority that signed its certificate; nothing goes unencrypted"),
            ("cert", "PEM file with this client's certificate"),
            ("key", "PEM file with the key of that certificate"),
        )
    ),
    click.option(
        "--wait-workers",
        type=click.IntRange(1, 1_000_000),
        metavar="N",
        help="Of a running scheduler: begin when it has N workers.",
    ),
    click.option(
        "--wait-seconds",
        type=click.FloatRange(0, 31_622_400, min_open=True),
        callback=number,
        default=300.0,
        show_default=True,
        help="How long to wait for them, before the command fails.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1, 4096),
        help="Local worker processes; if not given, one for each core where the work is worth them.",
    ),
    memory_option,
)
_CLUSTER = (
    "scheduler",
    "scheduler_file",
    "workers",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "wait_workers",
    "wait_seconds",
)
WHERE = (*_CLUSTER, "memory")
"""Parameters of `cluster_options`: they change no number."""
metric_parameters = together(
    click.option(
        "--mmd-kernel",
        "kernel",
        type=click.Choice(["multiscale", "gaussian"]),
        default="multiscale",
        show_default=True,
        help="Kernel of the mmd metric.",
    ),
    click.option(
        "--sigma",
        type=float,
        help="Bandwidth of the gaussian kernel in token ids; the median heuristic if not given.",
    ),
    click.option(
        "--compatible",
        type=click.Choice(["correct", "published"]),
        default="correct",
        show_default=True,
        help="'published' makes the choices of the paper's code where they differ; see docs/published.md.",
    ),
)
approach_parameters = together(
    click.option(
        "--temperature",
        type=float,
        default=1.0,
        show_default=True,
        help="Divides distances (attentional) or z-scores (normalized) before the softmin.",
    ),
    click.option(
        "--top-k", type=click.IntRange(max=2**31 - 1), help="Keep the k largest coefficients and renormalise."
    ),
    click.option(
        "--protocol",
        type=click.Choice(["cross-fitted", "published"]),
        default="cross-fitted",
        show_default=True,
        help="Of neural: no row is predicted by a network that saw it, or one network of 80% for all.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        show_default=True,
        help="Of neural and selected.",
    ),
    click.option(
        "--width", type=click.IntRange(2, 20_000), default=4000, show_default=True, help="Of neural's layers."
    ),
    click.option(
        "--leave-out",
        type=click.Choice(["adapter", "group"]),
        default="adapter",
        show_default=True,
        help="Predict each adapter from all others, or from those of other groups; 'tuned', 'ridge' and 'neural'"
        " are fitted so too.",
    ),
)


def _examples(_context: click.Context, _option: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal() or not 0 < int(value) < 2**31:
        raise click.BadParameter(f"expected a number of at least 1, or all, found {value!r}")
    return int(value)


def examples_option(text: str) -> Decorator:
    """Return `--examples`, a number or `all`."""
    return click.option(
        "--examples", callback=_examples, default="32", show_default=True, metavar="N|all", help=text
    )


def device_option(text: str) -> Decorator:
    """Return `--device`."""
    return click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help=text
    )


def threads_option(text: str) -> Decorator:
    """Return `--threads`."""
    return click.option("--threads", type=click.IntRange(1, 4096), help=text)


label_options = together(
    examples_option("Of selected: labelled examples that are drawn of a dataset, at the most."),
    click.option(
        "--model",
        help="Of selected: folder or hub name of the base model; the bank's base model if not given.",
    ),
    device_option("Of selected: where the base model computes."),
    threads_option("Of selected: cores that the base model computes on; all if not given."),
)


def metric_option(*, many: bool, default: str = "jensen-shannon") -> Decorator:
    """Return `--metric`: one name, or also `all` and several."""
    return click.option(
        "--metric",
        "metrics" if many else "metric",
        type=click.Choice([*METRICS, "all"] if many else METRICS, case_sensitive=False),
        metavar="NAME",
        multiple=many,
        default=[default] if many else default,
        show_default=True,
        help="Distance between token distributions: wasserstein (wd), kullback-leibler (kl), jensen-shannon (js), mmd "
        "or tf-idf" + ("; may be given several times; all is the paper's four." if many else "."),
    )


class ApproachChoice(click.Choice[str]):
    """The names of all approaches that are registered when it is asked, and `all`."""

    def __init__(self) -> None:
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        """The names."""
        return (*approach_names(), "all")

    @choices.setter
    def choices(self, _: object) -> None: ...

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take a name that is registered without asking what installed packages offer."""
        return str(value) if is_registered(value) else super().convert(value, param, ctx)


class ApproachOption(click.Option):
    """`--approach`, whose help tells of every approach that is registered when it is asked."""

    @property
    def help(self) -> str:
        """What the option is, and each approach in a line."""
        lines = (f"{name}: {about}" for name, about in descriptions().items())
        return f"How distances become coefficients; may be given several times. {'; '.join(lines)}. {self._which}"

    @help.setter
    def help(self, which: str) -> None:
        self._which = which


def approach_option(
    default: Sequence[str] | Callable[[], Sequence[str]] = ("normalized",),
    which: str = "'all' is every one as quick as attentional, normalized, uniform and nearest.",
    shown: str | bool = True,
) -> Decorator:
    """Return `--approach`: names, or `all`.

    Parameters
    ----------
    default
        Names, or what returns them when the command runs.
    which
        Ends the help: what `all`, or the default, is.
    shown
        The default in words, where it is not a list of names.
    """
    return click.option(
        "--approach",
        "approaches",
        cls=ApproachOption,
        type=ApproachChoice(),
        metavar="NAME",
        multiple=True,
        default=default if callable(default) else list(default),
        show_default=shown,
        help=which,
    )


def on_command_line(context: click.Context, name: str) -> bool:
    """Whether a user gave a parameter, and not its default or the environment."""
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def opened(path: Path) -> AdapterBank:
    """Open the bank."""
    import bankdb
    from cli.display import tell

    return bankdb.open(path, told=lambda line: tell(line, err=True))


def cluster_of(settings: Mapping[str, Any]) -> ClusterOptions:
    """Return where tasks run, from what `cluster_options` gave a command; what else is among it is left alone."""
    from compute.cluster.machine import parse_memory
    from compute.cluster.options import ClusterOptions

    memory = settings["memory"]
    return ClusterOptions(
        **{name: settings[name] for name in _CLUSTER},
        memory=None if memory is None else parse_memory(memory),
    )


def machine_of(settings: Mapping[str, Any]) -> Machine:
    """Return where the base model computes, from what `label_options` gave a command."""
    from compute.generation.machine import Machine

    return Machine(device=settings["device"], threads=settings["threads"])


def labels_of(settings: Mapping[str, Any]) -> LabelOptions:
    """Return how labels are read, likewise."""
    from compute.labels.answer_labels import LabelOptions

    return LabelOptions(machine_of(settings))


_PARAMETERS = (
    "compatible",
    "leave_out",
    "kernel",
    "sigma",
    "protocol",
    "seed",
    "width",
    "temperature",
    "top_k",
    "examples",
    "model",
    "merge",
    "density",
    "majority_sign",
    "merge_weights",
    "merge_seed",
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What options of metrics, approaches and merge methods gave a command; what else is among it is left alone.

    Attributes
    ----------
    settings
        By the options' names; one that is missing has the default of `PredictionOptions`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)

    def combination(self, metric: str, approach: str) -> PredictionOptions:
        """Return the options of one prediction, with the parameters that it reads."""
        from compute.prediction.ways import combination

        return combination(metric, approach, **self._given())

    def combinations(self, metrics: tuple[str, ...], approaches: tuple[str, ...]) -> list[PredictionOptions]:
        """Return every metric with every approach; an approach of no metric, or of its own, once."""
        from compute.prediction.ways import combinations

        return combinations(metrics, approaches, **self._given())

    def _given(self) -> dict[str, Any]:
        return {name: self.settings[name] for name in _PARAMETERS if name in self.settings}
