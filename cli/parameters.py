"""Options of the command line, combined with metrics and approaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cli.options import chosen_approaches, chosen_metrics

if TYPE_CHECKING:
    from compute.options import PredictionOptions


@dataclass(frozen=True, slots=True)
class Parameters:
    """What `metric_parameters` and `approach_parameters` give a command, by the options' names."""

    kernel: str = "multiscale"
    sigma: float | None = None
    compatible: str = "correct"
    temperature: float = 1.0
    top_k: int | None = None
    protocol: str = "cross-fitted"
    seed: int = 0
    width: int = 4000
    leave_out: str = "adapter"

    def combination(self, metric: str, approach: str) -> PredictionOptions:
        """Return the options of one prediction, with the parameters that it reads."""
        from compute.options import PredictionOptions

        names = ["compatible", "leave_out"]
        names += ["kernel", "sigma"] if metric == "mmd" or approach == "matching" else []
        names += ["protocol", "seed", "width"] if approach == "neural" else ["temperature", "top_k"]
        return PredictionOptions(
            metric=metric, approach=approach, **{name: getattr(self, name) for name in names}
        )

    def combinations(self, metrics: tuple[str, ...], approaches: tuple[str, ...]) -> list[PredictionOptions]:
        """Return every metric with every approach; an approach of no metric, or of its own, once."""
        from compute.options import NO_DISTANCES

        names = chosen_metrics(metrics)
        return [
            self.combination(metric, approach)
            for approach in chosen_approaches(approaches)
            for metric in (names[:1] if approach in (*NO_DISTANCES, "matching") else names)
        ]


def parameters_of(settings: Mapping[str, Any]) -> Parameters:
    """Return the parameters among a command's settings; what else is among them is left alone."""
    return Parameters(**{field.name: settings[field.name] for field in fields(Parameters)})
