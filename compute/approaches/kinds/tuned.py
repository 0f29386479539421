"""Temperature and top-k fitted on the bank's own rows."""

from __future__ import annotations

from dataclasses import asdict

from compute.approaches.base import Approach, LeaveOneOut, Made, NewDatasets, given


class Tuned(Approach):
    """Softmin by the settings that predict the bank's own adapters best: see `compute.approaches.tuned`."""

    name = "tuned"
    about = "softmin, its temperature and top-k fitted on the bank's own adapters"
    reads_gram = True
    reads_bank = True
    fitted = True
    least = 3

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """Settings of each row are chosen without the adapters of its unit."""
        from compute.approaches.tuned import fit, leave_one_out

        distances = given(inputs.distances, "reads_distances")
        tuned = fit(distances, given(inputs.gram, "reads_gram"), inputs.units)
        weights = leave_one_out(distances, inputs.units, tuned)
        return Made(weights, tuple(map(asdict, tuned.settings)))

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """Settings are chosen on all rows of the bank."""
        import numpy as np

        from compute.approaches.tuned import apply, fit

        between, gram = given(inputs.between_sources, "reads_bank"), given(inputs.gram, "reads_gram")
        tuned = fit(between, gram, inputs.units, nested=False)
        none = np.zeros(inputs.to_sources.shape, dtype=np.bool_)
        weights = apply(tuned.overall, tuned.spread, inputs.to_sources, none)
        return Made(weights, (asdict(tuned.overall),) * len(weights))
