"""Options of the command line, combined with metrics and approaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.options import chosen_approaches, chosen_metrics

if TYPE_CHECKING:
    from compute.options import PredictionOptions


class Parameters:
    """The options of the command line, to be combined with metrics and approaches."""

    def __init__(
        self,
        kernel: str,
        sigma: float | None,
        compatible: str,
        temperature: float,
        top_k: int | None,
        protocol: str,
        seed: int,
        width: int,
        leave_out: str = "adapter",
    ) -> None:
        self._mmd: dict[str, Any] = {"kernel": kernel, "sigma": sigma}
        self._softmin: dict[str, Any] = {"temperature": temperature, "top_k": top_k}
        self._neural: dict[str, Any] = {"protocol": protocol, "seed": seed, "width": width}
        self._common: dict[str, Any] = {"compatible": compatible, "leave_out": leave_out}

    def combination(self, metric: str, approach: str) -> PredictionOptions:
        """Return the options of one prediction."""
        from compute.options import PredictionOptions

        mmd = self._mmd if metric == "mmd" or approach == "matching" else {}
        own = self._neural if approach == "neural" else self._softmin
        return PredictionOptions(metric=metric, approach=approach, **self._common, **mmd, **own)

    def combinations(self, metrics: tuple[str, ...], approaches: tuple[str, ...]) -> list[PredictionOptions]:
        """Return every metric with every approach; an approach of no metric, or of its own, once."""
        from compute.options import NO_DISTANCES

        names = chosen_metrics(metrics)
        return [
            self.combination(metric, approach)
            for approach in chosen_approaches(approaches)
            for metric in (names[:1] if approach in (*NO_DISTANCES, "matching") else names)
        ]
