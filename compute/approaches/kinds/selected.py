"""Labels without training: the candidate under which the base model answers the dataset's own examples best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.base import Approach, Fitted, Labels, LeaveOneOut, Made, NewDatasets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compute.types import FloatArray

SINGLE = 3
"""Single sources that are candidates: the nearest by the first of the metrics."""


class Selected(Approach):
    """The best of a few candidates by the loss on labelled examples, nothing trained.

    The candidates are `uniform`, `normalized` and `nearest` by each of the metrics at their defaults, and the three
    nearest single sources by Jensen-Shannon. Equal ones are evaluated once; of equal losses the first is taken.
    """

    name = "selected"
    about = (
        "the best of uniform, normalized and nearest by every metric, by the base model's loss on examples of the "
        "dataset itself (extra torch)"
    )
    reads_distances = False
    # All that need no options of their own.
    metrics = ("jensen-shannon", "tf-idf", "wasserstein", "kullback-leibler", "mmd")
    reads_labels = True
    reads = ("compatible", "seed", "examples", "model")

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """Choose for each target that is asked for; rows of others are 0."""
        import numpy as np

        weights = np.zeros(inputs.excluded.shape)
        fitted: list[Fitted] = []
        for row in range(len(weights)):
            if inputs.targets is not None and not inputs.targets[row]:
                fitted.append({})
                continue
            distances = {name: inputs.by_metric[name][row] for name in self.metrics}
            made = candidates(distances, inputs.excluded[row], inputs.options.compatible, row)
            weights[row], chosen = best(made, _given(inputs.labels), row)
            fitted.append(chosen)
        return Made(weights, tuple(fitted))

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """Choose for each dataset."""
        import numpy as np

        weights = np.zeros(inputs.to_sources.shape)
        nothing = np.zeros(weights.shape, dtype=np.bool_)
        fitted: list[Fitted] = []
        for row in range(len(weights)):
            distances = {name: inputs.by_metric[name][row] for name in self.metrics}
            made = candidates(distances, nothing[row], inputs.options.compatible)
            weights[row], chosen = best(made, _given(inputs.labels), row)
            fitted.append(chosen)
        return Made(weights, tuple(fitted))


def candidates(
    distances: Mapping[str, FloatArray],
    excluded: NDArray[np.bool_],
    compatible: str = "correct",
    own: int | None = None,
) -> dict[str, FloatArray]:
    """Return the candidates of one target by name, each of shape (N,): coefficients over the sources.

    Parameters
    ----------
    distances
        Of each metric, in their order, those of the target to the sources, shape (N,).
    excluded
        bool, shape (N,): sources that are not used; at least one is.
    compatible, own
        See `compute.approaches.by_distance.coefficients`: `own` is the target's own column.

    Raises
    ------
    ParameterError, ComputeError
        Every source is excluded; or a distance that is used is no finite number from 0 on.
    """
    import numpy as np

    from compute.approaches.by_distance import coefficients

    def made(row: FloatArray, approach: str) -> FloatArray:
        self_index = None if own is None else np.asarray([own])
        weights: FloatArray = coefficients(
            row[None, :], excluded[None, :], approach, compatible=compatible, self_index=self_index
        )[0]
        return weights

    found = {"uniform": made(np.zeros(len(excluded)), "uniform")}
    for approach in ("normalized", "nearest"):
        found |= {f"{metric} {approach}": made(row, approach) for metric, row in distances.items()}
    first, row = next(iter(distances.items()))
    usable = np.flatnonzero(~excluded)
    # The first of equal distances, as `nearest` takes it; that one is a candidate already.
    order = usable[np.argsort(row[usable], kind="stable")]
    for place, source in enumerate(order[1:SINGLE].tolist(), 2):
        found[f"{first} nearest {place}"] = (np.arange(len(excluded)) == source).astype(np.float64)
    return found


def best(made: Mapping[str, FloatArray], labels: Labels, target: int) -> tuple[FloatArray, Fitted]:
    """Return the candidate of the lowest loss, the first of equal ones; and its name with the losses of all.

    Candidates that are equal in single precision, in which adapters are combined, are evaluated once.

    Raises
    ------
    ComputeError
        A loss is no finite number from 0 on.
    """
    import math

    import numpy as np

    known: dict[bytes, float] = {}
    losses: dict[str, float] = {}
    for name, weights in made.items():
        key = weights.astype(np.float32).tobytes()
        if key not in known:
            known[key] = labels.loss(target, weights)
        losses[name] = known[key]
        if not (math.isfinite(losses[name]) and losses[name] >= 0):
            raise ComputeError(
                f"selected: expected a finite loss from 0 on of {name} for row {target}, found {losses[name]}; check "
                "the base model and the examples"
            )
    chosen = min(losses, key=losses.__getitem__)
    fitted: dict[str, Any] = {"chosen": chosen, "losses": losses}
    return made[chosen], fitted


def _given(labels: Labels | None) -> Labels:
    if labels is None:
        raise ParameterError(
            "selected: expected labelled examples of each target, found none; it is made by the workflows of a bank, "
            "such as compute.predict"
        )
    return labels
