"""Runs and their pieces: what was computed, from what, and how far it came."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Delete, delete, insert
from sqlalchemy.orm import Session

from bankdb.catalog.database import Database, every, found
from bankdb.catalog.schema import PieceRow, PredictionRow, RunRow
from bankdb.errors import BankNotFoundError
from bankdb.records import PredictionRecord, RunRecord, library_versions, now

_NAMES_AT_ONCE = 500


def inputs_hash(kind: str, parameters: Mapping[str, Any]) -> str:
    """Return the sha256 that identifies a run: its kind and everything that determines its result."""
    text = json.dumps([kind, parameters], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class RunBook:
    """Finds a run again by its inputs, and keeps which of its pieces are done.

    Parameters
    ----------
    database
        An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        *,
        seed: int | None = None,
        key: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Return the run of these parameters, or of this key if one is given: the one that is there, or a new one."""
        inputs = parameters if key is None else key
        digest = inputs_hash(kind, inputs if seed is None else {**inputs, "seed": seed})
        with self._database.write() as session:
            row = found(session, RunRow, inputs_sha256=digest)
            if row is None:
                row = RunRow(
                    kind=kind,
                    inputs_sha256=digest,
                    parameters=json.dumps(parameters, sort_keys=True),
                    versions=json.dumps(library_versions()),
                    seed=seed,
                    state="open",
                    created=now(),
                )
                session.add(row)
                session.flush()
            return _run_record(row)

    def get(self, run_id: int) -> RunRecord:
        """Return a run by number. Raises BankNotFoundError if there is none."""
        with self._database.read() as session:
            row = found(session, RunRow, id=run_id)
            if row is None:
                raise BankNotFoundError(f"run {run_id}: no such run in the bank")
            return _run_record(row)

    def all(self, kind: str | None = None) -> list[RunRecord]:
        """Return every run, or every run of one kind, oldest first."""
        with self._database.read() as session:
            return [_run_record(row) for row in every(session, RunRow) if kind in {None, row.kind}]

    def finish(self, run_id: int) -> None:
        """Mark a run as done; one that is done keeps its time."""
        with self._database.write() as session:
            _set_state(session, run_id, "done", now())

    def reopen(self, run_id: int) -> None:
        """Forget every piece of a run: its array is gone or no longer to be trusted."""
        with self._database.write() as session:
            session.execute(delete(PieceRow).where(PieceRow.run_id == run_id))
            _set_state(session, run_id, "open", None)

    def drop_damaged(self) -> list[str]:
        """Delete records that do not match their checksums, and are of what was computed; return what they were."""
        return self._database.drop_damaged()

    def delete(self, run_id: int) -> None:
        """Forget a run with its pieces and predictions."""
        with self._database.write() as session:
            session.execute(delete(RunRow).where(RunRow.id == run_id))

    # -- pieces ---------------------------------------------------------------------------------

    def done_pieces(self, run_id: int) -> dict[str, str]:
        """Return the pieces that are done, each with the hash of what it was computed from."""
        with self._database.read() as session:
            return {row.name: row.content for row in every(session, PieceRow, run_id=run_id)}

    def mark_done(self, run_id: int, pieces: Mapping[str, str]) -> None:
        """Record pieces as done, in one transaction; a piece already there gets the new content."""
        with self._database.write() as session:
            _forget(session, run_id, pieces)
            stamp = now()
            rows = [
                {"run_id": run_id, "name": name, "content": content, "done": stamp}
                for name, content in pieces.items()
            ]
            if rows:
                session.execute(
                    insert(PieceRow), [row | {"checksum": PieceRow.checksum_of(row)} for row in rows]
                )

    def forget_pieces(self, run_id: int, names: Iterable[str]) -> None:
        """Record pieces as not done."""
        with self._database.write() as session:
            _forget(session, run_id, names)

    # -- predictions ----------------------------------------------------------------------------

    def store_predictions(self, predictions: Sequence[PredictionRecord]) -> None:
        """Store predictions in one transaction, in place of any of the same run and target."""
        with self._database.write() as session:
            for run_id in dict.fromkeys(record.run_id for record in predictions):
                for targets in _batches(record.target for record in predictions if record.run_id == run_id):
                    session.execute(
                        _without_sync(delete(PredictionRow)).where(
                            PredictionRow.run_id == run_id, PredictionRow.target.in_(targets)
                        )
                    )
            session.add_all(_prediction_row(record) for record in predictions)

    def set_exported(self, run_id: int, exported: Mapping[str, tuple[str, str]]) -> None:
        """Record where predictions were exported, by target: the folder, and the dtype of its weights."""
        with self._database.write() as session:
            for row in every(session, PredictionRow, run_id=run_id):
                if row.target in exported:
                    row.exported_to, row.export_dtype = exported[row.target]

    def predictions(self, run_id: int) -> list[PredictionRecord]:
        """Return the predictions of a run, in the order they were stored."""
        with self._database.read() as session:
            return [_prediction_record(row) for row in every(session, PredictionRow, run_id=run_id)]


def _set_state(session: Session, run_id: int, state: str, finished: str | None) -> None:
    row = found(session, RunRow, id=run_id)
    if row is not None and row.state != state:
        row.state, row.finished = state, finished


def _forget(session: Session, run_id: int, names: Iterable[str]) -> None:
    for some in _batches(names):
        session.execute(
            _without_sync(delete(PieceRow)).where(PieceRow.run_id == run_id, PieceRow.name.in_(some))
        )


def _without_sync(statement: Delete) -> Delete:
    """Return a statement that does not look for what it deletes among loaded objects: there are none."""
    return statement.execution_options(synchronize_session=False)


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Cut names into lists that one statement takes: SQLite has a limit on parameters."""
    every = list(names)
    for start in range(0, len(every), _NAMES_AT_ONCE):
        yield every[start : start + _NAMES_AT_ONCE]


def _run_record(row: RunRow) -> RunRecord:
    return RunRecord(**{name: getattr(row, name) for name in RunRecord.__dataclass_fields__})


def _prediction_row(record: PredictionRecord) -> PredictionRow:
    import numpy as np

    return PredictionRow(
        run_id=record.run_id,
        target=record.target,
        sources=np.asarray(record.sources, dtype="<u4").tobytes(),
        weights=np.asarray(record.weights, dtype="<f8").tobytes(),
        effective_sources=record.effective_sources,
        relative_error=record.relative_error,
        exported_to=record.exported_to,
        export_dtype=record.export_dtype,
    )


def _prediction_record(row: PredictionRow) -> PredictionRecord:
    import numpy as np

    return PredictionRecord(
        run_id=row.run_id,
        target=row.target,
        sources=tuple(int(value) for value in np.frombuffer(row.sources, dtype="<u4")),
        weights=tuple(float(value) for value in np.frombuffer(row.weights, dtype="<f8")),
        effective_sources=row.effective_sources,
        relative_error=row.relative_error,
        exported_to=row.exported_to,
        export_dtype=row.export_dtype,
    )
