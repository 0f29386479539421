"""How help is laid out: options of long commands by section, in 80 columns, and no name broken at its hyphen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click

EVERYDAY, OTHER = "Options", "Other options"

_COMBINING = (
    *("kernel", "sigma", "compatible", "temperature", "top_k", "protocol", "seed", "width", "leave_out"),
    *("space", "rank", "merge", "density", "majority_sign", "merge_weights", "merge_seed", "include_same"),
)
_ROWS = ("input_column", "output_column", "text_column", "skip_bad_rows")
_FILES = ("name", "dtype", "file_format", "base_gguf", "push_to", "public", "overwrite", "as_json")
_CLUSTER = (
    *("workers", "memory", "scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key"),
    *("wait_workers", "wait_seconds"),
)
_COMBINATION, _DATA, _OUTPUT = "How adapters are combined", "How data is read", "What is written"
_WHERE, _TEST, _MODEL, _TRAINING = "Memory and cluster", "Test examples", "Base model", "Training"

SECTIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "predict": {
        EVERYDAY: ("bank_path", "whole_bank", "out", "export", "metrics", "approaches", "test", "model"),
        _COMBINATION: _COMBINING,
        _DATA: _ROWS,
        _OUTPUT: ("store", "weight_error", *_FILES),
        _TEST: ("compare", "max_examples"),
        _MODEL: ("examples", "model_dtype", "device", "threads", "batch_size"),
        _WHERE: _CLUSTER,
    },
    "finetune": {
        EVERYDAY: ("bank_path", "out", "model", "steps", "budget", "examples", "start", "test"),
        _TRAINING: ("batch_size", "learning_rate", "train_dtype", "device", "threads"),
        _COMBINATION: ("metrics", "approaches", *_COMBINING),
        _DATA: _ROWS,
        _OUTPUT: _FILES,
        _TEST: ("compare", "max_examples"),
        _WHERE: _CLUSTER,
    },
    "evaluate": {
        EVERYDAY: ("bank_path", "adapters", "test", "model", "targets", "metrics", "approaches", "leave_out"),
        _TEST: ("compare", "max_examples", "data", "resamples"),
        _COMBINATION: tuple(name for name in _COMBINING if name not in {"leave_out", "include_same"}),
        _DATA: _ROWS,
        _MODEL: ("dtype", "device", "threads", "batch_size"),
        _TRAINING: ("finetune", "examples", "train_batch_size", "learning_rate", "train_dtype"),
        "By weights": ("weights_only", "bank_sizes", "draws"),
        _OUTPUT: ("out", "csv", "as_json"),
        _WHERE: _CLUSTER,
    },
    "coefficients": {
        EVERYDAY: ("bank_path", "metrics", "approaches"),
        _COMBINATION: _COMBINING[: _COMBINING.index("leave_out") + 1],
        _MODEL: ("model", "examples", "device", "threads"),
        _OUTPUT: ("csv", "parquet", "zarr", "as_json"),
        _WHERE: _CLUSTER,
    },
    "plan": {
        EVERYDAY: (
            "bank_path",
            "metrics",
            "approaches",
            "merge",
            "weight_error",
            "store",
            "workers",
            "memory",
        ),
        "A bank that is not there yet": ("adapters", "parameters", "vocabulary", "tokens", "distinct"),
        "Expected time": ("measure", "rates_file", "save_rates"),
        "An evaluation": ("evaluate", "model", "data", "max_examples"),
        _OUTPUT: ("as_json",),
    },
    "ingest": {
        EVERYDAY: ("bank_path", "group_pattern", "replace", "as_json"),
        "Pairs on the Hugging Face hub": (
            *("hub", "collections", "include", "exclude", "limit", "dry_run", "yes"),
            *("downloads", "keep_downloads"),
        ),
        _DATA: _ROWS,
        "What is taken of adapters": ("assume_base_model", "adapt_rank"),
        _WHERE: _CLUSTER,
    },
    "distances": {
        EVERYDAY: ("bank_path", "metrics", "kernel", "sigma", "compatible"),
        _OUTPUT: ("csv", "parquet", "zarr", "as_json"),
        _WHERE: _CLUSTER,
    },
}
"""Of commands with many options: each option's section, by the name of its parameter, as help shows them."""

_WHOLE = str.maketrans("-", "\N{NON-BREAKING HYPHEN}")
_HYPHEN = str.maketrans("\N{NON-BREAKING HYPHEN}", "-")


class WholeNames(click.HelpFormatter):
    """A formatter that begins a new line between words alone: what is broken at a hyphen cannot be copied."""

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(text.translate(_WHOLE))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write names, and what they mean beside them."""
        super().write_dl([(name, text.translate(_WHOLE)) for name, text in rows], col_max, col_spacing)

    def getvalue(self) -> str:
        """Return what was written."""
        return super().getvalue().translate(_HYPHEN)


class HelpContext(click.Context):
    """A context whose help is written so."""

    formatter_class = WholeNames


class SectionedCommand(click.Command):
    """A command whose help shows its options by section, if it has many."""

    context_class = HelpContext

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every option in its section; one without a section comes last, with `--help`."""
        sections = SECTIONS.get(self.name or "")
        if sections is None:
            super().format_options(ctx, formatter)
            return
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, names in sections.items():
            rows = [record for record in map(records.pop, names) if record is not None]
            with formatter.section(title):
                formatter.write_dl(rows)
        with formatter.section(OTHER):
            formatter.write_dl([record for record in records.values() if record is not None])
