"""Which options go together: one that would do nothing is refused, with what it goes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from bankdb.errors import ParameterError
from cli.combining.rules import MERGING_RULES, Given, Rule
from cli.commands.evaluating.curves import CURVE_PARAMETERS
from cli.help_sections import SectionedCommand
from cli.options import on_command_line
from compute.approaches.registry import approaches, get_approach
from compute.merge_methods.method import LINEAR

if TYPE_CHECKING:
    from compute.approaches.base import Approach


class CheckedCommand(SectionedCommand):
    """A command that refuses options which would do nothing."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check, and run the command."""
        for rule in RULES.get(self.name or "", ()):
            given = [name for name in rule.options if on_command_line(ctx, name)]
            if given and not rule.read(ctx.params):
                shown = [param.opts[-1] for param in self.params if param.name in given]
                raise ParameterError(f"{', '.join(shown)}: would do nothing here; goes with {rule.goes_with}")
        if ctx.params.get("as_json") and str(ctx.params.get("csv")) == "-":
            raise ParameterError(
                "--csv -, --json: both would write to the screen; give --csv a file, or leave one of them out"
            )
        return super().invoke(ctx)


def _asked(given: Given) -> list[Approach]:
    """Return the approaches that are asked for; of `all`, every one that it could stand for."""
    names = given["approaches"]
    every = [approach for approach in approaches() if not approach.reads_labels] if "all" in names else []
    return every + [get_approach(name) for name in names if name != "all"]


def _reads(option: str) -> Callable[[Given], bool]:
    """Whether an approach that is asked for reads an option."""
    return lambda given: any(option in approach.reads for approach in _asked(given))


def _softens(given: Given) -> bool:
    """Whether there is a softmin: equal shares, and one source alone, are the same at any temperature."""
    return any(
        "temperature" in approach.reads and not (approach.baseline or approach.single_source)
        for approach in _asked(given)
    )


def _reads_metric(given: Given) -> bool:
    return any(approach.reads_distances and approach.metric is None for approach in _asked(given))


def _reads_bank(given: Given) -> bool:
    """Whether an approach that is asked for reads the bank's own matrices for one dataset too."""
    return any(approach.reads_bank for approach in _asked(given))


def _fitted(given: Given) -> bool:
    """Whether an approach that is asked for is made for the bank's own rows before it is for others."""
    return any(
        approach.reads_bank or approach.fitted or ("seed" in approach.reads and not approach.reads_labels)
        for approach in _asked(given)
    )


def _mmd(given: Given) -> bool:
    if not {"mmd", "all"}.isdisjoint(given["metrics"]):
        return True
    return "approaches" in given and any(approach.metric == "mmd" for approach in _asked(given))


def _finetuning(given: Given) -> bool:
    return bool(given["finetune"])


def _no_weights_only(given: Given) -> bool:
    return not given["weights_only"]


def _of_the_bank(given: Given) -> bool:
    """Whether the bank's own tasks are evaluated."""
    return not given["adapters"]


def _of_folders(given: Given) -> bool:
    return bool(given["adapters"])


def _tests(given: Given) -> bool:
    return given["test"] is not None


_WAITING = Rule(("wait_seconds",), lambda given: given["wait_workers"] is not None, "--wait-workers")
_SHARED = Rule(
    ("memory",),
    lambda given: any(given[name] is not None for name in ("scheduler", "scheduler_file", "workers")),
    "--scheduler, --scheduler-file or --workers: this process reads one row at a time",
)
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
    Rule(("temperature",), _softens, "--approach attentional, or another that reads it"),
    Rule(("top_k",), _reads("top_k"), "--approach attentional, or another that reads it"),
)


def _neural(*options: str) -> tuple[Rule, ...]:
    return tuple(
        Rule((name,), _reads(name), "--approach neural, or another that reads it") for name in options
    )


def _labels(*options: str) -> tuple[Rule, ...]:
    return tuple(
        Rule((name,), _reads("model"), "--approach selected, or another that reads labels")
        for name in options
    )


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
_WHOLE_BANK = (
    "--all, or an --approach that reads the bank's own matrices; of others NEWDATA runs in this process"
)


def _starting(*rules: Rule) -> tuple[Rule, ...]:
    """Rules of a prediction that training begins with: read where it is one, and as they say."""

    def also(read: Callable[[Given], bool]) -> Callable[[Given], bool]:
        return lambda given: given["start"] == "predicted" and read(given)

    return tuple(Rule(one.options, also(one.read), f"--start predicted and {one.goes_with}") for one in rules)


_TASKS = (
    *("targets", "approaches", "compatible", "leave_out", "space", "rank", "weights_only", "bank_sizes"),
    *("merge", "density", "majority_sign", "merge_weights", "merge_seed"),
    *("finetune", *CURVE_PARAMETERS),
    *_CLUSTER,
    *("metrics", "kernel", "sigma", "temperature", "top_k", "protocol", "width", "draws", "examples"),
)
_ROWS = ("input_column", "output_column", "text_column", "skip_bad_rows")
_PUBLIC = Rule(("public",), lambda given: given["push_to"] is not None, "--push-to OWNER/NAME")
_BASE_GGUF = Rule(
    ("base_gguf",), lambda given: given["file_format"] != "peft", "--format gguf, or --format both"
)
_TESTING = ("compare", "max_examples", "model_dtype", "batch_size")
_MODEL = ("model", "device", "threads")
_GENERATING = ("targets", "max_examples", "data", "device", "dtype", "batch_size", "threads")

_TWO_COLUMNS = Rule(
    ("input_column", "output_column"),
    lambda given: given["text_column"] is None,
    "two columns; --text-column reads one alone",
)

RULES: Mapping[str, tuple[Rule, ...]] = {
    "restore": (
        Rule(
            ("database", "arrays"),
            lambda given: given["only"] != "arrays",
            "--only catalogue, or with a whole restore; rows go where the bank has its own",
        ),
    ),
    "ingest": (
        *(_TWO_COLUMNS, _WAITING),
        Rule(
            ("include", "exclude", "limit", "dry_run", "yes"),
            lambda given: given["hub"] or bool(given["collections"]),
            "--hub OWNER, or --hub-collection ID",
        ),
    ),
    "verify": (_SHARED, _WAITING),
    "report": (_WAITING,),
    "distances": (*_KERNEL, _WAITING),
    "coefficients": (
        *_KERNEL,
        *_BY_DISTANCE,
        *_neural("protocol", "seed", "width"),
        *_labels("examples", *_MODEL),
        _WAITING,
    ),
    "predict": (
        Rule(_CLUSTER, lambda given: given["whole_bank"] or _reads_bank(given), _WHOLE_BANK),
        *_KERNEL,
        *_BY_DISTANCE,
        *_neural("protocol", "seed", "width"),
        *_labels("examples"),
        Rule(
            ("leave_out",),
            lambda given: given["whole_bank"] or _fitted(given),
            "--all, or with --approach tuned, ridge or neural, which are fitted on the bank",
        ),
        _TWO_COLUMNS,
        Rule(
            _ROWS,
            lambda given: not given["whole_bank"],
            "NEWDATA; the datasets of the bank are counted already",
        ),
        Rule(
            ("test",),
            lambda given: not given["whole_bank"],
            "NEWDATA; the bank's own tasks have `bank evaluate`",
        ),
        Rule(_TESTING, _tests, "--test FILE"),
        Rule(
            ("push_to",),
            lambda given: not given["whole_bank"],
            "NEWDATA; any one of --all is pushed by `bank export NAME --prediction RUN --push-to`",
        ),
        _PUBLIC,
        Rule(
            _MODEL,
            lambda given: _tests(given) or _reads("model")(given),
            "--test FILE, or --approach selected, or another that reads labels",
        ),
        Rule(
            ("dtype",),
            lambda given: not given["whole_bank"] or given["export"] is not None or given["store"],
            "--export FOLDER, or --store",
        ),
        *MERGING_RULES,
        Rule(
            ("overwrite", "file_format"),
            lambda given: not given["whole_bank"] or given["export"] is not None,
            "--export FOLDER",
        ),
        _BASE_GGUF,
        _WAITING,
    ),
    "export": (
        Rule(
            ("bank_path", "run"),
            lambda given: given["adapter"] is None,
            "NAME, of an adapter of a bank; --adapter reads none",
        ),
        Rule(
            ("adapter",),
            lambda given: given["merge"] or given["push_to"] is not None,
            "--merge, or --push-to",
        ),
        Rule(
            ("push_to",),
            lambda given: not given["merge"],
            "NAME, or --adapter without --merge, which writes a whole model",
        ),
        Rule(
            ("out", "file_format"),
            lambda given: given["adapter"] is None or given["merge"],
            "NAME, of an adapter of a bank; --adapter with --push-to writes no files",
        ),
        _PUBLIC,
        Rule(("dtype",), lambda given: given["run"] is not None, "--prediction RUN"),
        Rule(
            ("memory",),
            lambda given: given["run"] is not None or given["merge"],
            "--prediction RUN, or --merge",
        ),
        Rule(
            ("file_format", "overwrite"),
            lambda given: not given["merge"],
            "--out of an adapter; --merge writes a whole model, into a new folder",
        ),
        _BASE_GGUF,
        Rule(("model",), lambda given: given["merge"], "--merge"),
    ),
    "finetune": (
        _TWO_COLUMNS,
        *_starting(
            Rule(_CLUSTER, _reads_bank, "an --approach that reads the bank's own matrices"),
            *_KERNEL,
            *_BY_DISTANCE,
            *_neural("protocol", "width"),
            *MERGING_RULES,
            Rule(("leave_out",), _fitted, "--approach tuned, ridge or neural, which are fitted on the bank"),
            _WAITING,
        ),
        Rule(
            ("approaches", "compatible", "space", "rank", "merge", "include_same"),
            lambda given: given["start"] == "predicted",
            "--start predicted",
        ),
        Rule(("compare", "max_examples"), lambda given: given["test"] is not None, "--test FILE"),
        _PUBLIC,
        _BASE_GGUF,
    ),
    "evaluate": (
        Rule(
            _TASKS, _of_the_bank, "the bank's own tasks; with --adapter there are only those that are given"
        ),
        Rule(("test", "compare", *_ROWS), _of_folders, "--adapter FOLDER"),
        _TWO_COLUMNS,
        Rule(
            ("text_column",),
            lambda given: given["data"] is not None,
            "--compare and --data, training examples; test examples have answers too",
        ),
        Rule(
            ("data", "memory"),
            lambda given: _of_the_bank(given) or bool(given["compare"]),
            "--compare, or the bank's own tasks without --adapter",
        ),
        Rule(
            (*_GENERATING, "resamples", "space", "rank", "merge"),
            _no_weights_only,
            "answers that are generated, which --weights-only leaves out",
        ),
        Rule(
            ("model",),
            lambda given: _no_weights_only(given) or _reads("model")(given),
            "answers that are generated, which --weights-only leaves out, or an approach that reads labels",
        ),
        Rule(
            ("examples",),
            lambda given: _finetuning(given) or _reads("examples")(given),
            "--finetune, or --approach selected",
        ),
        Rule(("draws",), lambda given: bool(given["bank_sizes"]), "--bank-sizes"),
        Rule(
            ("bank_sizes",),
            lambda given: given["merge"] == LINEAR,
            "--merge linear: of others errors in weights are not told",
        ),
        *MERGING_RULES,
        Rule(CURVE_PARAMETERS, _finetuning, "--finetune"),
        Rule(
            ("weights_only", "bank_sizes", "space", "rank", "merge"),
            lambda given: not _finetuning(given),
            "answers of predictions as they are; --finetune trains them, as factors",
        ),
        Rule(
            ("seed",),
            lambda given: _no_weights_only(given) or bool(given["bank_sizes"]) or _reads("seed")(given),
            "--approach neural, --bank-sizes, or answers that are generated",
        ),
        *_KERNEL,
        *_BY_DISTANCE,
        *_neural("protocol", "width"),
        _WAITING,
    ),
    "generate": (
        Rule(
            ("input_column", "out", "batch_size"),
            lambda given: given["input_file"] is not None,
            "--input FILE",
        ),
        Rule(("seed",), lambda given: given["temperature"] > 0, "--temperature"),
    ),
    "plan": (
        Rule(
            ("vocabulary", "tokens", "distinct"),
            lambda given: given["adapters"] is not None,
            "--adapters; of a bank they are known",
        ),
        Rule(("bank_path",), lambda given: given["adapters"] is None, "a bank; --adapters plans without one"),
        Rule(("evaluate",), lambda given: given["adapters"] is None, "a bank; --adapters plans without one"),
        Rule(("model", "data", "max_examples"), lambda given: given["evaluate"], "--evaluate"),
        Rule(
            ("merge", "weight_error", "store", "rates_file", "save_rates"),
            lambda given: not given["evaluate"],
            "the plan of `bank predict --all`; --evaluate measures its own",
        ),
        _BY_DISTANCE[0],
    ),
}
