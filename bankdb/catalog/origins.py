"""What files of adapters and datasets say: headers, configurations, names of the base model, and how rows were read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bankdb.catalog.database import Database
from bankdb.catalog.schema import AdapterRow, BlobRow, DatasetRow, TokenDistributionRow, the_bank
from bankdb.errors import BankFormatError
from bankdb.strict_json import parse_object

_AT_ONCE = 500


class Origins:
    """Hashes of stored headers and configurations, names of the base model that adapters state, and rules of texts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._texts: dict[str, str] = {}  # of configurations, by their hashes

    def first_header(self) -> str | None:
        """Return the hash of the header of the ready adapter of the lowest row; None where there is none."""
        with self._database.read() as session:
            query = select(AdapterRow.header_sha256).where(AdapterRow.state == "ready")
            return session.scalar(query.order_by(AdapterRow.row).limit(1))

    def task_types(self) -> Counter[str | None]:
        """Return how many ready adapters state each task type in their configurations, or None."""
        return self._stated("task_type")

    def base_models(self) -> Counter[str | None]:
        """Return how many ready adapters state each name of the base model in their configurations."""
        return self._stated("base_model_name_or_path")

    def _stated(self, key: str) -> Counter[str | None]:
        with self._database.read() as session:
            query = select(AdapterRow.config_sha256, func.count()).where(AdapterRow.state == "ready")
            found = session.execute(query.group_by(AdapterRow.config_sha256)).all()
        texts = self.configurations(str(sha256) for sha256, _ in found)
        votes: Counter[str | None] = Counter()
        for sha256, count in found:
            votes[_value(texts.get(str(sha256), ""), key)] += int(count)
        return votes

    def text_rules(self, rows: Iterable[int]) -> dict[int, str]:
        """Return by which rule the dataset of each of `rows` was read, as it is stored; of none that is not there."""
        wanted = set(rows)
        with self._database.read() as session:
            bank = the_bank(session)
            # By columns that an index holds, so that no counts are read.
            query = (
                select(AdapterRow.row, TokenDistributionRow.text_rule)
                .join(DatasetRow, DatasetRow.adapter_id == AdapterRow.id)
                .join(TokenDistributionRow, TokenDistributionRow.dataset_id == DatasetRow.id)
                .where(
                    AdapterRow.state == "ready",
                    TokenDistributionRow.tokenizer_fingerprint == bank.tokenizer_fingerprint,
                    TokenDistributionRow.by_rule(bank.text_rule),
                )
            )
            return {row: rule for row, rule in session.execute(query) if row in wanted}

    def configurations(self, hashes: Iterable[str]) -> dict[str, str]:
        """Return the stored configurations of these hashes; what is lacking or damaged is left out."""
        every = set(hashes)
        wanted = sorted(every - self._texts.keys())
        with self._database.read() as session:
            for start in range(0, len(wanted), _AT_ONCE):
                blobs = select(BlobRow).where(BlobRow.sha256.in_(wanted[start : start + _AT_ONCE]))
                for blob in session.scalars(blobs):
                    data = blob.data if isinstance(blob.data, bytes) else b""
                    if hashlib.sha256(data).hexdigest() == blob.sha256:
                        self._texts[blob.sha256] = data.decode("utf-8", "replace")
        return {sha256: self._texts[sha256] for sha256 in every & self._texts.keys()}

    def task_type(self) -> str:
        """Return the task type that most adapters state, with which predictions are written.

        Adapters that state none have no vote. CAUSAL_LM where as many state it as another, or none any: texts are
        continued, and PEFT's AutoPeftModelForCausalLM loads no adapter that states none.
        """
        stated = {task: count for task, count in self.task_types().items() if task is not None}
        return max(stated, key=lambda task: (stated[task], task == "CAUSAL_LM", task), default="CAUSAL_LM")

    def add_aliases(self, names: Iterable[str]) -> tuple[str, ...]:
        """Record further names of the base model; return all that the bank has now."""
        with self._database.write() as session:
            row = the_bank(session)
            aliases = list(dict.fromkeys([*json.loads(row.base_model_aliases), *names]))
            row.base_model_aliases = json.dumps(aliases)
            return tuple(aliases)

    def set_aliases(self, names: Iterable[str]) -> None:
        """Record these names of the base model, beside its own, and no others."""
        with self._database.write() as session:
            the_bank(session).base_model_aliases = json.dumps(list(names))


def _value(config: str, key: str) -> str | None:
    try:
        value = parse_object(config).get(key)
    except ValueError:
        return None  # damaged: whoever reads the blob itself says so
    return value if isinstance(value, str) else None


class Blobs:
    """Stored headers and configurations by their hash, most of a bank's being the same; none is ever deleted.

    Parameters
    ----------
    database
        An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Hashes of what is stored for certain, and not asked for again.
        self._stored: set[str] = set()

    def read(self, sha256: str) -> bytes:
        """Return stored bytes by their hash. Raises BankFormatError if they are missing or damaged."""
        with self._database.read() as session:
            row = session.get(BlobRow, sha256)
            data = None if row is None else row.data
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != sha256:
            self._stored.discard(sha256)  # whoever brings them again heals them
            raise BankFormatError(
                f"{self._database.shown}: stored bytes {sha256[:12]} are {'missing' if data is None else 'damaged'}: "
                "restore the database from a copy, or remove and ingest the adapter again"
            )
        return data

    def keep(self, session: Session, data: bytes) -> str:
        """Store bytes in the caller's transaction, unless they are there; return their hash."""
        digest = hashlib.sha256(data).hexdigest()
        if digest in self._stored:
            return digest
        row = session.get(BlobRow, digest)
        if row is None:
            session.add(BlobRow(sha256=digest, data=data))
        elif row.data != data:
            row.data = data  # damaged since it was stored
        session.flush()
        return digest

    def committed(self, digests: Iterable[str]) -> None:
        """Note what is stored for certain: a transaction that kept it was committed."""
        self._stored.update(digests)
