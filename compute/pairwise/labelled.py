"""A matrix between the adapters of a bank, with their names: shown in a few lines, saved as CSV, or for xarray."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import write_whole
from bankdb.errors import ConflictError
from bankdb.records import AdapterRecord
from bankdb.shown import html_summary, text_summary
from compute.pairwise.stored import StoredRows
from compute.pairwise.text import csv_bytes

if TYPE_CHECKING:
    import xarray

_CORNER = 8
# Of a larger matrix, a range would take seconds and a copy.
_RANGE_UP_TO = 2000


class LabelledMatrix:
    """What matrices of targets (rows) by sources (columns) can do; see their own classes."""

    __slots__ = ()
    adapters: tuple[AdapterRecord, ...]
    values: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        """Names of the adapters, the order of both axes."""
        return [record.name for record in self.adapters]

    @property
    def shape(self) -> tuple[int, ...]:
        """Targets, and sources."""
        return len(self.adapters), len(self.adapters)

    @property
    def held(self) -> bool:
        """Whether the values are in memory; else they are read when they are asked for."""
        return True

    @property
    def stored(self) -> StoredRows | None:
        """Where other processes read the values; None if they are in memory."""
        return None

    def band(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return the rows of some targets, shape (stop - start, N)."""
        return self.values[start:stop]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the values, for functions of NumPy."""
        return np.array(self.values, dtype=dtype, copy=copy)

    def to_xarray(self) -> xarray.DataArray:
        """Return the matrix with names on its axes: `target` (rows), `source` (columns)."""
        import xarray

        coordinates = {"target": self.names, "source": self.names} | self._coordinates()
        return xarray.DataArray(self.values, coordinates, ("target", "source"), name=self._label())

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the matrix as CSV, all digits kept: a row a target, a column a source; return the file.

        Raises
        ------
        ConflictError
            `path` is there and is not to be replaced.
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise ConflictError(f"{target}: already there; choose another path, or give overwrite=True")
        with closing(csv_bytes([self], [{}])) as text:
            write_whole(target, text)
        return target

    def __repr__(self) -> str:
        """Return what it is of, its size, and the range of its values."""
        return text_summary(self._title(), self._facts())

    def _repr_html_(self) -> str:
        names = self.names[:_CORNER]
        rows = [
            (name, *row) for name, row in zip(names, self.band(0, _CORNER)[:, :_CORNER].tolist(), strict=True)
        ]
        return html_summary(
            self._title(), self._facts(), ("target", *names), rows, len(self.adapters) - len(rows)
        )

    def _title(self) -> str:
        n = len(self.adapters)
        return f"{type(self).__name__} {self._label()}, {n:,} targets x {n:,} sources"

    def _label(self) -> str:
        raise NotImplementedError

    def _facts(self) -> dict[str, object]:
        n = len(self.adapters)
        if not 1 < n <= _RANGE_UP_TO or not self.held:
            return {}
        others = self.values[~np.eye(n, dtype=bool)]
        least, middle, most = np.quantile(others, [0, 0.5, 1]).tolist()
        return {"smallest, median, largest": f"{least:.4g}, {middle:.4g}, {most:.4g}"}

    def _coordinates(self) -> dict[str, tuple[str, NDArray[np.float64]]]:
        return {}
