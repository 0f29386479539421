"""Which options go together: one that would do nothing is refused, with what it goes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from bankdb.errors import ParameterError

Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """When some options of a command are read.

    Attributes
    ----------
    options
        Their parameters' names.
    read
        Whether they are, from the values of all parameters.
    goes_with
        What they go with, as the message says it.
    """

    options: tuple[str, ...]
    read: Callable[[Given], bool]
    goes_with: str


class CheckedCommand(click.Command):
    """A command that refuses options which would do nothing."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check, and run the command."""
        for rule in RULES.get(self.name or "", ()):
            given = [name for name in rule.options if _on_command_line(ctx, name)]
            if given and not rule.read(ctx.params):
                shown = [param.opts[-1] for param in self.params if param.name in given]
                raise ParameterError(f"{', '.join(shown)}: would do nothing here; goes with {rule.goes_with}")
        return super().invoke(ctx)


def _on_command_line(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _some(*approaches: str, all_has: bool) -> Callable[[Given], bool]:
    """Whether one of these approaches is asked for; `all_has` where `all` stands for one of them."""
    names = {*approaches, *(["all"] if all_has else [])}
    return lambda given: not names.isdisjoint(given["approaches"])


def _reads_metric(given: Given) -> bool:
    return any(name not in {"uniform", "oracle", "matching"} for name in given["approaches"])


def _mmd(given: Given) -> bool:
    return not {"mmd", "all"}.isdisjoint(given["metrics"]) or "matching" in given.get("approaches", ())


def _no_weights_only(given: Given) -> bool:
    return not given["weights_only"]


_WAITING = Rule(("wait_seconds",), lambda given: given["wait_workers"] is not None, "--wait-workers")
_KERNEL = (
    Rule(("kernel",), _mmd, "--metric mmd or --approach matching"),
    Rule(
        ("sigma",),
        lambda given: _mmd(given) and given["kernel"] == "gaussian",
        "--metric mmd or --approach matching, and --mmd-kernel gaussian",
    ),
)
_BY_DISTANCE = (
    Rule(
        ("metrics",),
        _reads_metric,
        "an --approach that reads distances; of these none does, or it has its own",
    ),
    Rule(
        ("temperature",),
        _some("attentional", "normalized", all_has=True),
        "--approach attentional or normalized",
    ),
    Rule(
        ("top_k",),
        _some("attentional", "normalized", "uniform", all_has=True),
        "--approach attentional, normalized or uniform",
    ),
)


def _neural(*options: str, all_has: bool = False) -> Rule:
    return Rule(options, _some("neural", all_has=all_has), "--approach neural")


_CLUSTER = (
    "scheduler",
    "scheduler_file",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "wait_workers",
    "wait_seconds",
    "workers",
)
_WHOLE_BANK = "--all; for NEWDATA everything runs in this process"
_GENERATING = ("targets", "max_examples", "data", "model", "device", "dtype", "batch_size", "threads")

RULES: Mapping[str, tuple[Rule, ...]] = {
    "distances": (*_KERNEL, _WAITING),
    "coefficients": (*_KERNEL, *_BY_DISTANCE, _neural("protocol", "seed", "width"), _WAITING),
    "predict": (
        Rule(_CLUSTER, lambda given: given["whole_bank"], _WHOLE_BANK),
        *_KERNEL,
        *_BY_DISTANCE,
        _neural("protocol", "seed", "width"),
        Rule(
            ("leave_out",),
            lambda given: given["whole_bank"] or _some("tuned", "ridge", "neural", all_has=False)(given),
            "--all, or with --approach tuned, ridge or neural, which are fitted on the bank",
        ),
        Rule(
            ("input_column", "output_column"),
            lambda given: not given["whole_bank"],
            "NEWDATA; the datasets of the bank are counted already",
        ),
        Rule(
            ("dtype", "overwrite"),
            lambda given: not given["whole_bank"] or given["export"] is not None,
            "--export FOLDER",
        ),
        _WAITING,
    ),
    "evaluate": (
        Rule(
            (*_GENERATING, "resamples", "space", "rank"),
            _no_weights_only,
            "answers that are generated, which --weights-only leaves out",
        ),
        Rule(("draws",), lambda given: bool(given["bank_sizes"]), "--bank-sizes"),
        Rule(
            ("seed",),
            lambda given: (
                _no_weights_only(given) or bool(given["bank_sizes"]) or _some("neural", all_has=True)(given)
            ),
            "--approach neural, --bank-sizes, or answers that are generated",
        ),
        *_KERNEL,
        *_BY_DISTANCE,
        _neural("protocol", "width", all_has=True),
        _WAITING,
    ),
    "plan": (
        Rule(
            ("vocabulary", "tokens", "distinct"),
            lambda given: given["adapters"] is not None,
            "--adapters; of a bank they are known",
        ),
        Rule(("bank_path",), lambda given: given["adapters"] is None, "a bank; --adapters plans without one"),
        _BY_DISTANCE[0],
    ),
}
