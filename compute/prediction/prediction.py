"""A predicted adapter and how it came about: shown in a few lines, and saved as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.datasets.read import Dataset
from bankdb.errors import listed
from bankdb.records import AdapterRecord, BankRecord
from bankdb.shown import html_summary, metric_text, text_summary
from compute.approaches.base import Fitted
from compute.approaches.options import PredictionOptions
from compute.combination.delta import DeltaAdapter
from compute.metrics.novelty import Novelty
from compute.prediction.coefficients import described
from compute.prediction.provenance import (
    NOVELTY,
    RETAINED,
    chosen_dtype,
    form_record,
    provenance,
    write_prediction,
)

if TYPE_CHECKING:
    import xarray

    from bankdb.gguf.export import GgufExport

# Sources that a prediction shows of itself: in text, and in a notebook's table.
_FEW, _LISTED = 4, 10


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prediction:
    """A predicted adapter and how it came about.

    Attributes
    ----------
    name
        The dataset's name.
    dataset
        The dataset predicted for.
    tokens
        Its number of tokens.
    adapters
        The N adapters of the bank, by row.
    distances
        float64, shape (N,); NaN throughout for an approach that reads none. For `ridge`, and others that say so,
        the mean of both directions where they differ.
    coefficients
        float64, shape (N,), sum 1; some may be negative if the approach is `signed`.
    effective_sources
        1 / sum of squared coefficients.
    left_out
        Names of adapters left out because they hold the very same dataset.
    vector
        float32, shape (p,): the predicted weights in the bank's layout and scaling; in delta space those of
        `delta`, in its own.
    metric
        The metric's key, or `none`.
    options
        How it was made.
    bank
        What the bank is that it was made from.
    delta
        In delta space: the adapter with its layout, scaling and retained energies.
    fitted
        Of an approach that is fitted: what was chosen by the bank's own rows.
    novelty
        How far the dataset is from all sources, against the bank's own datasets; None for an approach that reads no
        distances.
    """

    name: str
    dataset: Dataset
    tokens: int
    adapters: tuple[AdapterRecord, ...]
    distances: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    effective_sources: float
    left_out: tuple[str, ...]
    vector: NDArray[np.float32]
    metric: str
    options: PredictionOptions
    bank: BankRecord
    delta: DeltaAdapter | None = None
    fitted: Fitted | None = None
    novelty: Novelty | None = None

    def save(
        self,
        folder: str | Path,
        *,
        dtype: str = "source",
        overwrite: bool = False,
        gguf: GgufExport | None = None,
    ) -> Path:
        """Write it as an adapter's folder that PEFT and vLLM load; return the folder.

        Parameters
        ----------
        dtype
            `source`: that of the adapters combined (float32 if they differ); or float32, float16, bfloat16.
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
        form = None if self.delta is None else self.delta.form
        write_prediction(self.bank, target, self.vector, record, overwrite, form, gguf)
        return target

    def provenance(self, dtype: str = "source") -> dict[str, Any]:
        """Return everything that determines it, with the dtype that its weights are written in: see `save`."""
        weights = self.coefficients.astype(np.float32)
        written = chosen_dtype(dtype, self.adapters, weights)
        record = provenance(self.bank, self.name, self.metric, self.options, self.adapters, weights, written)
        record["dataset"] = {
            "content_sha256": self.dataset.sha256,
            "examples": len(self.dataset),
            "tokens": self.tokens,
            **({} if self.dataset.rule is None else {"text_rule": self.dataset.rule.as_text}),
        }
        record["left_out"] = list(self.left_out)
        if self.novelty is not None:
            record[NOVELTY] = self.novelty.record()
        if self.fitted is not None:
            record["fitted"] = self.fitted
        if self.delta is not None:
            record |= {**form_record(self.delta.form), RETAINED: dict(self.delta.retained)}
        return record

    def sources(self) -> list[tuple[str, float, float]]:
        """Return name, coefficient and distance of every source that has a coefficient, the largest first.

        The largest by its magnitude, where some are negative.
        """
        order = np.argsort(-np.abs(self.coefficients), kind="stable").tolist()
        return [
            (self.adapters[i].name, float(self.coefficients[i]), float(self.distances[i]))
            for i in order
            if self.coefficients[i] != 0
        ]

    def to_xarray(self) -> xarray.Dataset:
        """Return the coefficients and distances by `source`."""
        import xarray

        names = [record.name for record in self.adapters]
        columns = {"coefficients": self.coefficients, "distances": self.distances}
        return xarray.Dataset({key: ("source", value) for key, value in columns.items()}, {"source": names})

    def __repr__(self) -> str:
        """Return what it is for, how it was made, and its largest sources."""
        largest = ", ".join(f"{name} {weight:.4g}" for name, weight, _ in self.sources()[:_FEW])
        return text_summary(self._title(), self._facts() | {"largest sources": largest})

    def _repr_html_(self) -> str:
        sources = self.sources()
        headings = ("source", "coefficient", f"distance ({metric_text(self.metric)})")
        more = len(sources) - _LISTED
        return html_summary(self._title(), self._facts(), headings, sources[:_LISTED], more)

    def _title(self) -> str:
        return f"Prediction for {self.name} by {described(self.options)}"

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "dataset": f"{len(self.dataset):,} examples, {self.tokens:,} tokens",
            "effective sources": f"{self.effective_sources:.4g} of {len(self.adapters):,}",
        }
        negative = self.coefficients[self.coefficients < 0]
        if len(negative):
            facts["negative coefficients"] = f"{len(negative):,}, sum {negative.sum():.4g}"
        if self.left_out:
            facts["left out"] = listed(self.left_out)
        if self.novelty is not None and self.novelty.novel:
            facts["far from the bank"] = self.novelty.told()
        return facts
