"""Kernel ridge regression."""

from __future__ import annotations

from dataclasses import asdict

from compute.approaches.base import Approach, LeaveOneOut, Made, NewDatasets, given


class Ridge(Approach):
    """Regression from datasets to adapters: see `compute.approaches.ridge`."""

    name = "ridge"
    about = "kernel ridge regression from datasets to adapters, fitted on the bank's own adapters"
    reads_gram = True
    reads_bank = True
    averages_directions = True
    fitted = True
    least = 3
    signed = False

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """Parameters of each row are chosen without the adapters of its unit."""
        from compute.approaches.ridge import fit, leave_one_out

        distances = given(inputs.distances, "reads_distances")
        ridge = fit(distances, given(inputs.gram, "reads_gram"), inputs.units)
        weights = leave_one_out(distances, inputs.units, ridge, signed=self.signed)
        return Made(weights, tuple(map(asdict, ridge.rows)))

    def new_dataset(self, inputs: NewDatasets) -> Made:
        """Parameters are chosen on all rows of the bank."""
        from compute.approaches.ridge import fit, new_target

        between, gram = given(inputs.between_sources, "reads_bank"), given(inputs.gram, "reads_gram")
        ridge = fit(between, gram, inputs.units, nested=False)
        weights = new_target(inputs.to_sources, between, ridge.overall, ridge.median, signed=self.signed)
        return Made(weights, (asdict(ridge.overall),) * len(weights))


class RidgeSigned(Ridge):
    """The same regression with its weights as they come out: they sum to 1, and some may be negative."""

    name = "ridge-signed"
    about = "ridge with its weights as they come out, of which some are negative"
    signed = True
