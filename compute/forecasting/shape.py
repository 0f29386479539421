"""The size of a bank, of one that is there or of one that is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import ParameterError
from compute.pairwise.plan import CHUNK_ROWS, chunk_count


@dataclass(frozen=True, slots=True)
class BankShape:
    """The size of a bank, which is all that a plan depends on.

    Attributes
    ----------
    adapters
        N.
    parameters
        p, of an adapter.
    vocabulary
        V, of the tokenizer.
    distinct
        Distinct token ids of all datasets together, each dataset's counted for itself.
    largest
        Distinct token ids of the dataset that has most.
    rows
        Rows of the bank's arrays: N, and those of removed adapters.
    blocks
        Blocks of 64 rows that hold adapters.
    exported
        Bytes of a value in an exported folder.
    """

    adapters: int
    parameters: int
    vocabulary: int
    distinct: int
    largest: int
    rows: int
    blocks: tuple[int, ...]
    exported: int = 4

    @classmethod
    def of_numbers(
        cls,
        adapters: int,
        parameters: int,
        vocabulary: int = 32_000,
        tokens: int = 70_000,
        distinct: int | None = None,
    ) -> BankShape:
        """Return the shape of a bank that is not there.

        Parameters
        ----------
        tokens
            Of each dataset.
        distinct
            Distinct ids among these; None for what a Zipf distribution over the vocabulary gives.

        Raises
        ------
        ParameterError
            A number is not above zero, or there are more distinct ids than tokens, or than the vocabulary has.
        """
        numbers = {"adapters": adapters, "parameters": parameters, "vocabulary": vocabulary, "tokens": tokens}
        for name, value in numbers.items():
            if value < 1:
                raise ParameterError(f"{name}: expected at least 1, found {value}; give a larger number")
        each = zipf_support(vocabulary, tokens) if distinct is None else distinct
        if not 1 <= each <= min(vocabulary, tokens):
            raise ParameterError(
                f"distinct: expected 1 to {min(vocabulary, tokens)} ids, found {each}; leave it out for an estimate"
            )
        blocks = tuple(range(chunk_count(adapters)))
        return cls(adapters, parameters, vocabulary, adapters * each, each, adapters, blocks)

    @classmethod
    def of_bank(cls, bank: AdapterBank) -> BankShape:
        """Return the shape of a bank. Raises BankNotFoundError if it is empty."""
        adapters = ready_adapters(bank)
        rows = [record.row for record in adapters]
        supports = [len(ids) for ids, _ in bank.catalog.token_counts(rows)]
        blocks = tuple(sorted({row // CHUNK_ROWS for row in rows}))
        dtypes = {record.dtype for record in adapters}
        return cls(
            adapters=len(rows),
            parameters=bank.layout.size,
            vocabulary=bank.record.vocabulary,
            distinct=sum(supports),
            largest=max(supports),
            rows=rows[-1] + 1,
            blocks=blocks,
            # Of several dtypes float32 is written.
            exported=2 if len(dtypes) == 1 and dtypes <= {"float16", "bfloat16"} else 4,
        )

    @property
    def mean_distinct(self) -> int:
        """Distinct ids of a dataset on average."""
        return max(1, self.distinct // self.adapters)


def zipf_support(vocabulary: int, tokens: int) -> int:
    """Return the expected number of distinct ids among tokens drawn with probabilities `1 / (k H_V)`.

    The chance that id k is among T tokens is `1 - (1 - 1 / (k H_V))^T`.
    """
    ranks = np.arange(1, vocabulary + 1, dtype=np.float64)
    shares = 1 / (ranks * np.sum(1 / ranks))
    with np.errstate(divide="ignore"):  # a vocabulary of one id: log of 0
        missing = np.exp(tokens * np.log1p(-shares))
    return max(1, min(vocabulary, tokens, round(float(np.sum(1 - missing)))))
