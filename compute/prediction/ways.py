"""Ways of predicting by the names of their parts: every metric with every approach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from compute.approaches.groups import LEAVE_OUT, units_of
from compute.approaches.options import PredictionOptions
from compute.approaches.registry import approaches as known_approaches
from compute.approaches.registry import get_approach
from compute.metrics.registry import FURTHER_METRIC_NAMES, METRIC_NAMES, canonical_metric_name

EVERY = "all"
_OF_MMD = ("kernel", "sigma")
_OF_SOME = ("protocol", "seed", "knots", "width", "epochs", "examples", "model")
_OF_WEIGHTS = ("temperature", "top_k")


def combinations(
    metrics: str | Sequence[str] = "jensen-shannon",
    approaches: str | Sequence[str] = "normalized",
    **parameters: Any,
) -> list[PredictionOptions]:
    """Return every metric with every approach; an approach of no metric, or of one of its own, once.

    Parameters
    ----------
    metrics
        Names; `all` is the paper's four.
    approaches
        Names; `all` is those that take one pass over the distances: none that is fitted, trained or reads labels, nor
        the oracle.
    parameters
        Of `PredictionOptions`; each is given to the ways that read it.

    Raises
    ------
    ParameterError
        A name is not known, or a parameter is out of its range.

    Examples
    --------
    >>> [(way.metric, way.approach) for way in combinations(["js", "wd"], ["normalized", "uniform"])]
    [('jensen-shannon', 'normalized'), ('wasserstein', 'normalized'), ('jensen-shannon', 'uniform')]
    """
    names = chosen_metrics([metrics] if isinstance(metrics, str) else metrics)
    return [
        combination(metric, how.name, **parameters)
        for how in map(
            get_approach, chosen_approaches([approaches] if isinstance(approaches, str) else approaches)
        )
        for metric in (names if how.reads_distances and how.metric is None else names[:1])
    ]


def combination(metric: str, approach: str, **parameters: Any) -> PredictionOptions:
    """Return the options of one metric and approach, with those of the parameters that it reads."""
    how = get_approach(approach)
    apart = set(_OF_SOME) - set(how.reads)
    apart |= set() if (how.metric or metric) == "mmd" else set(_OF_MMD)
    # Given with several approaches, they are for the others; what has other weights of its own refuses them.
    apart |= set(_OF_WEIGHTS) if how.trained else set()
    apart -= set(how.reads)
    given = {name: value for name, value in parameters.items() if name not in apart}
    return PredictionOptions(metric=metric, approach=approach, **given)


def those_that_fit(
    bank: AdapterBank, ways: Sequence[PredictionOptions], progress: Progress
) -> list[PredictionOptions]:
    """Return the ways that the bank is large enough for, of those that nobody asked for by name; the rest is told."""
    groups = [record.group for record in bank.adapters()]
    units = {kind: len(set(units_of(groups, kind).tolist())) for kind in LEAVE_OUT}
    kept = [way for way in ways if units[way.leave_out] >= way.how.least]
    gone = {way.approach: way.how.least for way in ways if way not in kept}
    if gone:
        needed = ", ".join(f"{name} (at least {least})" for name, least in gone.items())
        progress.note(f"left out for want of adapters or groups: {needed}")
    return kept


def chosen_metrics(metrics: Sequence[str]) -> list[str]:
    """Return the full names of the metrics asked for, each once."""
    if EVERY in metrics:
        return [*METRIC_NAMES, *(name for name in dict.fromkeys(metrics) if name in FURTHER_METRIC_NAMES)]
    return list(dict.fromkeys(canonical_metric_name(name) for name in metrics))


def chosen_approaches(approaches: Sequence[str]) -> list[str]:
    """Return the approaches asked for, each once."""
    every = [known.name for known in known_approaches() if known.quick] if EVERY in approaches else []
    return list(dict.fromkeys([*every, *(name for name in approaches if name != EVERY)]))
