"""A trained adapter and how it came about: shown in a few lines, and saved as a folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bankdb.errors import ParameterError
from bankdb.gguf.export import GgufExport
from bankdb.records import BankRecord
from bankdb.shown import html_summary, text_summary
from compute.finetuning.checkpoints import Checkpoints
from compute.finetuning.examples import TrainingExamples
from compute.finetuning.options import FinetuneOptions
from compute.finetuning.start import Start
from compute.finetuning.trainer import OPTIMIZER, Vector, warmup_steps
from compute.finetuning.training import Course
from compute.prediction.provenance import DTYPES, write_prediction

_LIBRARIES = ("torch", "peft", "transformers")


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a run was, as far as it determines its numbers.

    Attributes
    ----------
    model
        Hash of the base model: see `compute.generation.base_model.model_fingerprint`.
    end
        Id of the token that ends an answer.
    device
        `cpu` or `cuda`.
    threads
        Of each operation.
    """

    model: str
    end: int
    device: str
    threads: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Finetuned:
    """A trained adapter and how it came about.

    Attributes
    ----------
    name
        The dataset's name.
    vector
        float32, shape (p,): the adapter with the lowest loss on the examples held out, in the layout and scaling of
        `start.form`.
    start
        What training began with.
    examples
        What it was trained on, and what was held out.
    options
        As asked for.
    course
        Losses, the steps done, and the step that is kept.
    setting
        Base model, device and threads.
    record
        What determines the start, as a prediction's provenance has it.
    bank
        What the bank is.
    """

    name: str
    vector: Vector
    start: Start
    examples: TrainingExamples
    options: FinetuneOptions
    course: Course
    setting: Setting
    record: Mapping[str, Any]
    bank: BankRecord
    _checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(None, ""))

    @property
    def losses(self) -> tuple[float, ...]:
        """Of each step, on its batch, before it; nats a token of the answers."""
        return tuple(self.course.losses)

    @property
    def held_out_losses(self) -> dict[int, float]:
        """Loss on the examples held out by the number of steps, in nats a token of the answers; 0 is the start."""
        return dict(self.course.held_out)

    @property
    def step_kept(self) -> int:
        """Steps after which the loss on the examples held out was lowest; the fewest of equal ones."""
        return self.course.kept

    def sentence(self) -> str:
        """Say in one line which step is kept, and what it is worth."""
        found, kept = self.course.held_out, self.course.kept
        count = len(self.examples.held_out)
        examples = f"{count} example{'s' if count > 1 else ''}"
        if kept == 0:
            lowest = min(loss for step, loss in found.items() if step)
            return f"the start is kept: held-out loss {found[0]:.4g}, {lowest:.4g} at best after training ({examples})"
        return f"step {kept} is kept: held-out loss {found[0]:.4g} -> {found[kept]:.4g} ({examples})"

    def save(
        self,
        folder: str | Path,
        *,
        dtype: str = "source",
        overwrite: bool = False,
        gguf: GgufExport | None = None,
    ) -> Path:
        """Write it as an adapter's folder that PEFT and vLLM load; return the folder. Checkpoints are deleted then.

        Parameters
        ----------
        dtype
            `source`: that of the adapters that the start was made of (float32 if they differ); or float32, float16,
            bfloat16.
        overwrite
            Replace an adapter folder that is there.
        gguf
            Write it for llama.cpp too, or alone: what `AdapterBank.gguf` returns.

        Raises
        ------
        ConflictError
            `folder` is there and is not to be replaced.
        AdapterError, GgufError
            It cannot be written, or not exactly; or a value is too large for the dtype.
        """
        target, record = Path(folder), self.provenance(dtype)
        write_prediction(self.bank, target, self.vector, record, overwrite, self.start.form, gguf)
        self._checkpoints.discard()
        return target

    def provenance(self, dtype: str = "source") -> dict[str, Any]:
        """Return everything that determines it: no time, and of the machine what rounds its numbers alone."""
        if dtype not in DTYPES:
            raise ParameterError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
        options, course, examples, setting = self.options, self.course, self.examples, self.setting
        return {
            **self.record,
            "dtype": self.start.dtype if dtype == "source" else dtype,
            "finetuned": {
                "start": {**self.start.origin, "weights_sha256": self.start.sha256},
                "examples": {
                    "sha256": examples.sha256,
                    "training": list(examples.split.training),
                    "held_out": list(examples.split.held_out),
                    "repeated": examples.split.repeated,
                    "longest_tokens": max(len(one.ids) for one in (*examples.training, *examples.held_out)),
                },
                "steps": course.steps,
                "step_kept": course.kept,
                "losses": list(course.losses),
                "held_out_losses": {str(step): loss for step, loss in course.held_out.items()},
                "optimizer": {
                    **OPTIMIZER,
                    "learning_rate": options.learning_rate,
                    "warmup_steps": warmup_steps(self.start.form.layout, self.start.vector),
                },
                "batch_size": options.batch_size,
                "examples_at_once": course.reading.at_once,
                "seed": options.seed,
                "base_model": {
                    "sha256": setting.model,
                    "dtype": course.reading.dtype,
                    "dtype_chosen": course.reading.chosen,
                    "end_id": setting.end,
                },
                "device": setting.device,
                "threads": setting.threads,
                "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            },
        }

    def __repr__(self) -> str:
        """Return what it is for, what it was trained from, and what that is worth."""
        return text_summary(self._title(), self._facts())

    def _repr_html_(self) -> str:
        rows = sorted(self.course.held_out.items())
        return html_summary(self._title(), self._facts(), ("steps", "held-out loss"), rows)

    def _title(self) -> str:
        return f"Adapter for {self.name}, trained from {self.start.told()}"

    def _facts(self) -> dict[str, object]:
        split = self.examples.split
        return {
            "examples": f"{len(split.training)} trained on, {len(split.held_out)} held out",
            "steps": self.course.steps,
            "result": self.sentence(),
        }
