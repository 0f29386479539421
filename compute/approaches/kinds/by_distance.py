"""The approaches that are one pass over the distances (arXiv 2507.01806, appendix C.1.4), and two simpler ones."""

from __future__ import annotations

from compute.approaches.base import Approach, LeaveOneOut, Made, NewDatasets, given


class ByDistance(Approach):
    """Coefficients of a row from its distances alone: see `compute.approaches.by_distance`."""

    quick = True
    reads = ("temperature", "top_k", "compatible")

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """See `compute.approaches.by_distance.coefficients`."""
        import numpy as np

        from compute.approaches.by_distance import coefficients

        distances = np.zeros(inputs.excluded.shape)
        if self.reads_distances:
            distances = given(inputs.distances, "reads_distances")
        options = inputs.options
        made = coefficients(
            distances,
            inputs.excluded,
            self.name,
            temperature=options.temperature,
            top_k=options.top_k,
            compatible=options.compatible,
            self_index=np.arange(len(inputs.units)),
        )
        return Made(made)

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """See `compute.approaches.by_distance.coefficients`."""
        import numpy as np

        from compute.approaches.by_distance import coefficients

        shape, options = inputs.to_sources.shape, inputs.options
        made = coefficients(
            inputs.to_sources if self.reads_distances else np.zeros(shape),
            np.zeros(shape, dtype=np.bool_),
            self.name,
            temperature=options.temperature,
            top_k=options.top_k,
            compatible=options.compatible,
        )
        return Made(made)


class Attentional(ByDistance):
    """Equation (28)."""

    name = "attentional"
    about = "softmin of the distances"
    of_the_paper = True


class Normalized(ByDistance):
    """Softmin of z-scores."""

    name = "normalized"
    about = "softmin of each target's distances as z-scores"
    of_the_paper = True


class Uniform(ByDistance):
    """The mean of all sources."""

    name = "uniform"
    about = "equal shares of all sources, without distances"
    reads_distances = False
    baseline = True


class Nearest(ByDistance):
    """A copy of one source."""

    name = "nearest"
    about = "the source at the smallest distance alone"
    single_source = True
