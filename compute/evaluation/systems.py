"""The adapters that an evaluation compares: what each is made of, a hash of that, and its tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.groups import LEAVE_OUT
from compute.approaches.options import NO_DISTANCES, PredictionOptions, each_way
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster
from compute.combination.combine import combine_one
from compute.combination.delta import check_rank_fits, delta_adapter
from compute.evaluation.records import BASE, OWN, UNIFORM, System
from compute.prediction.coefficients import Coefficients, compute_coefficients
from compute.prediction.matrices import compute_gram
from compute.prediction.session import computing
from compute.prediction.ways import EVERY, combinations

BASE_SHA256 = hashlib.sha256(b"no adapter").hexdigest()
LISTED_SOURCES = 8
PAPER_APPROACHES = ("attentional", "normalized", "neural")
_MEMORY = 2**28


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedAdapter:
    """An adapter as the weighted sum of rows of the bank.

    Attributes
    ----------
    sources
        Those with a weight other than zero, by row.
    weights
        float32, shape (number of sources,).
    effective
        1 / sum of squared coefficients.
    space, rank
        See `PredictionOptions`.
    weight_error
        `norm(predicted - own) / norm(own)`, of factors; None where it was not computed.
    """

    sources: tuple[AdapterRecord, ...]
    weights: NDArray[np.float32]
    effective: float
    space: str = "factors"
    rank: int | str | None = None
    weight_error: float | None = None

    def sha256(self, scaling: float) -> str:
        """Return a hash of all that determines its weights, at the bank's scaling: equal ones are equal."""
        rows = sorted(
            (source.row_sha256, source.scaling, float(weight).hex())
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
        text = json.dumps([rows, scaling, self.space, self.rank], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def largest(self) -> tuple[tuple[str, float], ...]:
        """Return names and weights of the largest sources, largest first."""
        order = np.argsort(-np.abs(self.weights), kind="stable")[:LISTED_SOURCES]
        return tuple((self.sources[index].name, float(self.weights[index])) for index in order)


def evaluated_ways(
    ways: PredictionOptions | Sequence[PredictionOptions] | None, leave_out: str | None
) -> list[PredictionOptions]:
    """Return the ways asked for, or for None the paper's, each with what is to be left out in place of its own."""
    chosen = combinations(EVERY, PAPER_APPROACHES) if ways is None else each_way(ways)
    if leave_out is None:
        return chosen
    return [replace(way, leave_out=one) for one in left_out(leave_out) for way in chosen]


def left_out(leave_out: str) -> tuple[str, ...]:
    """Return `adapter`, `group`, or for `both` these two."""
    return LEAVE_OUT if leave_out == "both" else (leave_out,)


def with_baselines(ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """Return the ways, those that leave the same out, in the same space, after their baselines: see `default_ways`."""
    alike: dict[tuple[str, str, int | str | None], list[PredictionOptions]] = {}
    for way in ways or [PredictionOptions(approach=UNIFORM)]:
        alike.setdefault((way.leave_out, way.space, way.rank), []).append(way)
    return [
        way
        for (leave_out, space, rank), some in alike.items()
        for way in dict.fromkeys(default_ways(some, [leave_out], space=space, rank=rank))
    ]


def compared_ways(ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """Return the ways between the baselines and the bound, for a comparison of weights."""
    baselines = [PredictionOptions(approach=name) for name in (UNIFORM, "nearest")]
    return list(dict.fromkeys([*baselines, *ways, PredictionOptions(approach="oracle")]))


def default_ways(
    combinations: Sequence[PredictionOptions], leave_outs: Sequence[str], **options: Any
) -> list[PredictionOptions]:
    """Return `uniform`, `nearest` by Jensen-Shannon, and the combinations asked for.

    Parameters
    ----------
    leave_outs
        Each way once with every one of them.
    options
        Set in every way: `space`, `rank`.
    """
    ways = [PredictionOptions(approach="uniform"), PredictionOptions(approach="nearest"), *combinations]
    return [replace(way, leave_out=leave_out, **options) for leave_out in leave_outs for way in ways]


def system_of(way: PredictionOptions) -> System:
    """Return the system that a way of predicting is, with its name."""
    apart = ("leave_out", "space", "rank")
    parameters = {key: value for key, value in way.parameters().items() if key not in apart}
    reads = way.approach not in NO_DISTANCES
    details = [f"{key.replace('_', '-')} {value}" for key, value in sorted(parameters.items())]
    if way.space != "factors":
        details.append(f"{way.space} space" + ("" if way.rank is None else f" of rank {way.rank}"))
        parameters |= {} if way.rank is None else {"rank": way.rank}
    if way.leave_out != "adapter":
        details.append(f"{way.leave_out} left out")
    name = f"{way.metric} {way.approach}" if reads else way.approach
    return System(
        name=name + (f" ({', '.join(details)})" if details else ""),
        approach=way.approach,
        metric=way.metric if reads else None,
        leave_out=way.leave_out,
        space=way.space,
        parameters=parameters,
    )


def evaluated_adapters(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> tuple[list[System], dict[str, dict[str, EvaluatedAdapter | None]]]:
    """Return the systems, and for each adapter of the bank what every system answers with.

    Ways of the same name are one. The first systems are `base` and `own`.
    """
    systems = {BASE: System(BASE, BASE), OWN: System(OWN, OWN, space="factors")}
    chosen = []
    for way in ways:
        system = system_of(way)
        if system.name not in systems:
            check_rank_fits(bank, way.rank)
            systems[system.name] = system
            chosen.append(way)
    with computing(bank, cluster, progress) as used:
        gram = compute_gram(bank, used, progress)
        predictions = compute_coefficients(bank, chosen, used, progress)
    one = np.ones(1, dtype=np.float32)
    rows: dict[str, dict[str, EvaluatedAdapter | None]] = {
        record.name: {BASE: None, OWN: EvaluatedAdapter((record,), one, 1.0)} for record in bank.adapters()
    }
    for found in predictions:
        targets = np.arange(len(found.adapters))
        errors = weight_space_errors(found.values, gram, targets, bank.layout.size).relative
        name = system_of(found.options).name
        for index, record in enumerate(found.adapters):
            rows.setdefault(record.name, {})[name] = _predicted(found, index, float(errors[index]))
    return list(systems.values()), rows


def _predicted(found: Coefficients, index: int, error: float) -> EvaluatedAdapter:
    weights = found.values[index].astype(np.float32)
    used = np.flatnonzero(weights)
    way = found.options
    return EvaluatedAdapter(
        tuple(found.adapters[source] for source in used),
        weights[used],
        float(found.effective[index]),
        way.space,
        way.rank,
        error if way.space == "factors" and math.isfinite(error) else None,
    )


def adapter_tensors(bank: AdapterBank, adapter: EvaluatedAdapter) -> tuple[dict[str, NDArray[Any]], float]:
    """Return A and B of every module, by name, and the scaling of their product.

    Raises
    ------
    BankFormatError
        A row that is needed is damaged.
    """
    if adapter.space == "delta":
        made = delta_adapter(bank, adapter.sources, adapter.weights, adapter.rank)
        return made.form.layout.unflatten(made.vector), made.form.scaling
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    vector = combine_one(
        bank.store,
        sources_of(bank, adapter.sources),
        adapter.weights,
        chunk=column_chunk(bank.layout.size),
        budget=_MEMORY,
    )
    return bank.layout.unflatten(vector), scaling
