"""Options of the command line, combined with metrics and approaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.options import chosen_approaches, chosen_metrics

if TYPE_CHECKING:
    from compute.approaches.options import PredictionOptions


@dataclass(frozen=True, slots=True)
class Parameters:
    """What `metric_parameters` and `approach_parameters` gave a command; what else is among it is left alone.

    Attributes
    ----------
    settings
        By the options' names; one that is missing has the default of `PredictionOptions`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)

    def combination(self, metric: str, approach: str) -> PredictionOptions:
        """Return the options of one prediction, with the parameters that it reads."""
        from compute.approaches.options import PredictionOptions

        names = ["compatible", "leave_out"]
        names += ["kernel", "sigma"] if metric == "mmd" or approach == "matching" else []
        names += ["protocol", "seed", "width"] if approach == "neural" else ["temperature", "top_k"]
        given = {name: self.settings[name] for name in names if name in self.settings}
        return PredictionOptions(metric=metric, approach=approach, **given)

    def combinations(self, metrics: tuple[str, ...], approaches: tuple[str, ...]) -> list[PredictionOptions]:
        """Return every metric with every approach; an approach of no metric, or of its own, once."""
        from compute.approaches.options import NO_DISTANCES

        names = chosen_metrics(metrics)
        return [
            self.combination(metric, approach)
            for approach in chosen_approaches(approaches)
            for metric in (names[:1] if approach in (*NO_DISTANCES, "matching") else names)
        ]
