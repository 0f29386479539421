"""The bound: the best convex combination there is."""

from __future__ import annotations

from bankdb.errors import ParameterError
from compute.approaches.base import Approach, LeaveOneOut, Made, NewDatasets, given


class Oracle(Approach):
    """The combination nearest to the adapter itself: see `compute.approaches.oracle`."""

    name = "oracle"
    about = "the nearest combination there is; it knows the answer, and is a bound"
    reads_distances = False
    reads_gram = True
    knows_answer = True

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """See `compute.approaches.oracle.oracle`."""
        from compute.approaches.oracle import oracle

        return Made(oracle(given(inputs.gram, "reads_gram"), inputs.excluded))

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """Raise ParameterError: a new dataset has no adapter to be nearest to."""
        raise ParameterError("approach: oracle has no coefficients for new datasets; use another")
