"""The neural approach (arXiv 2507.01806, appendix C.1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compute.approaches.base import Approach, LeaveOneOut, Made, NewDatasets, Settings, given

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compute.approaches.neural.options import NeuralOptions


class Neural(Approach):
    """Softmin of a learned function of the z-scores: see `compute.approaches.neural`.

    A bank trains its network once and keeps it. The methods here train one that is not kept.
    """

    name = "neural"
    about = "softmin of a small network of the z-scores, trained on the bank's own adapters"
    reads_gram = True
    reads_bank = True
    reads = ("compatible", "protocol", "seed", "knots", "width", "epochs")
    of_the_paper = True
    # One is left out with each fold, training holds one back of the rest, and fits three.
    least = 5

    def network(self, options: Settings) -> NeuralOptions:
        """Return the options of the network."""
        return options.neural

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """See `compute.approaches.neural.leave_one_out.neural_leave_one_out`."""
        from compute.approaches.neural.leave_one_out import left_out_together, neural_leave_one_out

        options, groups, excluded = left_out_together(
            self.network(inputs.options), self._groups(inputs), len(inputs.units)
        )
        distances, gram = given(inputs.distances, "reads_distances"), given(inputs.gram, "reads_gram")
        # The number of parameters scales losses alone, and nobody is told of them.
        weights, _ = neural_leave_one_out(distances, gram, 1, options, groups, excluded=excluded)
        return Made(weights)

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """By a network trained on all rows of the bank, or on a share of them as the protocol says."""
        import numpy as np

        from compute.approaches.neural.leave_one_out import apply, left_out_together, rows_for_new
        from compute.approaches.neural.training import train

        options, groups, excluded = left_out_together(
            self.network(inputs.options), self._groups(inputs), len(inputs.units)
        )
        between, gram = given(inputs.between_sources, "reads_bank"), given(inputs.gram, "reads_gram")
        groups = None if options.protocol == "published" else groups
        rows = rows_for_new(len(gram), options)
        model = train(between, gram, rows, options, 1, groups=groups, excluded=excluded).model
        none = np.zeros(inputs.to_sources.shape, dtype=np.bool_)
        return Made(apply(model, inputs.to_sources, none, options))

    @staticmethod
    def _groups(inputs: LeaveOneOut | NewDatasets) -> NDArray[np.intp] | None:
        """Units, where groups are left out: no fold divides one."""
        return inputs.units if inputs.options.leave_out == "group" else None
