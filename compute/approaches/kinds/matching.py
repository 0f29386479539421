"""Distribution matching."""

from __future__ import annotations

from compute.approaches.base import Approach, LeaveOneOut, Made, NewDatasets, given


class Matching(Approach):
    """The nearest mixture of token distributions: see `compute.approaches.matching`."""

    name = "matching"
    about = "the mixture of sources whose tokens are nearest to the target's, by MMD whatever the metric"
    metric = "mmd"
    reads_bank = True

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """See `compute.approaches.matching.matching`."""
        from compute.approaches.matching import matching

        return Made(matching(given(inputs.distances, "reads_distances"), inputs.excluded))

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """See `compute.approaches.matching.matching_new`."""
        import numpy as np

        from compute.approaches.matching import matching_new

        between = given(inputs.between_sources, "reads_bank")
        return Made(np.stack([matching_new(row, between) for row in inputs.to_sources]))
