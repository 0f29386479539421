"""The neural approach on a bank: trained once for a metric and kept, with its coefficients and a network.

Leave-one-out coefficients come from the protocol of the options. The network that is kept is for new
datasets: with `published` the one that was trained, with `cross-fitted` one more, trained on all adapters,
since a new dataset is none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks
from bankdb.arrays.remote import Location
from bankdb.bank import AdapterBank
from bankdb.derived import digest_of, find_group, read_group, rows_of, texts_of, write_group
from bankdb.errors import BankNotFoundError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, RunRecord
from compute.approaches.neural.leave_one_out import left_out_together, neural_leave_one_out
from compute.approaches.neural.network import ScalarMLP
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.training import train
from compute.approaches.neural.workspace import Workspace
from compute.cluster.machine import core_count
from compute.prediction.networks.unfinished import UnfinishedTraining

_COEFFICIENTS = "coefficients"
_VERSION = 2
"""Of the way that networks are trained, which is part of what they are made from: 2 since it sums in another order."""
_BY_OLDER = "trained by an older version, which summed in another order"


def neural_coefficients(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    metric: str,
    distances: NDArray[np.float64],
    gram: NDArray[np.float64],
    options: NeuralOptions,
    progress: Progress,
    units: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Return leave-one-out coefficients, trained now or when the bank held the very same adapters.

    Parameters
    ----------
    metric
        Key of the metric.
    distances, gram
        float64, shape (N, N).
    units
        Shape (N,): number of the group that each is left out with, where groups are left out: no network
        that predicts a row has seen any of its group. None to leave out adapters.

    Raises
    ------
    ParameterError, ComputeError
        Too few adapters for the protocol, or values that cannot be trained on.
    """
    run, path, key = _run_of(bank, adapters, metric, options, units)
    made_from = _made_from(bank, adapters, key, _VERSION)
    if find_group(bank, path, progress, made_from):
        return read_chunks(path / _COEFFICIENTS, delete=path)
    if find_group(bank, path, SilentProgress(), _made_from(bank, adapters, key, None)):
        progress.note(f"{path}: {_BY_OLDER}; it is trained again")
    unfinished = UnfinishedTraining(bank, path, made_from, progress)
    values, model = _trained(bank.layout.size, metric, distances, gram, options, progress, units, unfinished)
    write_group(bank, path, made_from, {_COEFFICIENTS: values, **model.to_arrays()})
    unfinished.discard()
    bank.runs.finish(run.id)
    return values


def _trained(
    parameters: int,
    metric: str,
    distances: NDArray[np.float64],
    gram: NDArray[np.float64],
    options: NeuralOptions,
    progress: Progress,
    units: NDArray[np.intp] | None,
    unfinished: UnfinishedTraining,
) -> tuple[NDArray[np.float64], ScalarMLP]:
    """Leave-one-out coefficients, and the network for new datasets."""
    options, groups, excluded = left_out_together(options, units, len(distances))
    final = options.protocol != "published"
    progress.begin(f"train neural {metric}", (options.trainings + final) * options.epochs)
    told = 0

    def report(epoch: int, _: float) -> None:
        nonlocal told
        progress.advance(epoch - told)
        told = epoch

    unfinished.forget_others()
    workspace = Workspace(core_count(), unfinished)
    values, trained = neural_leave_one_out(
        distances,
        gram,
        parameters,
        options,
        groups,
        report,
        excluded=excluded,
        workspace=workspace,
    )
    if not final:
        progress.end()
        return values, trained[0].model
    # Their memory is needed, and of the folds' networks nothing is.
    del trained
    before = options.trainings * options.epochs
    whole = train(
        *(distances, gram, np.arange(len(distances)), options, parameters),
        lambda epoch, loss: report(before + epoch, loss),
        groups=groups,
        excluded=excluded,
        workspace=workspace,
    )
    progress.end()
    return values, whole.model


def stored_model(
    bank: AdapterBank,
    metric: str,
    options: NeuralOptions,
    adapters: Sequence[AdapterRecord],
    progress: Progress,
    leave_out: str = "adapter",
) -> ScalarMLP:
    """Return the network kept for new datasets: the newest of this metric, these options, and `leave_out`.

    Raises
    ------
    BankNotFoundError
        None was trained yet.
    """
    wanted = {"metric": metric, "options": network_key(options)}
    for run in reversed(bank.runs.all("neural")):
        parameters = json.loads(run.parameters)
        path = bank.derived / str(parameters.pop("array"))
        if (
            any(parameters[key] != value for key, value in wanted.items())
            or parameters.get("leave_out", "adapter") != leave_out
            or not find_group(bank, path, progress)
        ):
            continue
        if parameters["adapters"] != _digest(bank, adapters):
            progress.note(
                f"the network was trained on {parameters['number']} adapters, before the bank changed; "
                "`bank coefficients --approach neural` trains it again"
            )
        elif not find_group(bank, path, progress, _made_from(bank, adapters, _key(parameters), _VERSION)):
            progress.note(
                f"the network was {_BY_OLDER}; `bank coefficients --approach neural` trains it again"
            )
        arrays = read_group(path)
        del arrays[_COEFFICIENTS]
        return ScalarMLP.from_arrays(arrays)
    raise BankNotFoundError(
        f"{bank.path}: no network was trained for {metric} with these options yet; "
        "`bank coefficients --approach neural` with the same options trains one"
    )


def network_key(options: NeuralOptions) -> dict[str, Any]:
    """Return the options as the key of a stored network states them.

    Written out by hand, in the form that version 0.1.0 had: what a field is called in the code has no part in it.
    """
    return {
        "width": options.width,
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "knots": options.knots,
        "protocol": options.protocol,
        "folds": options.folds,
        "training_share": options.training_share,
        "held_out": options.held_out,
        "patience": options.patience,
        "compatible": options.compatible,
    }


def _run_of(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    metric: str,
    options: NeuralOptions,
    units: NDArray[np.intp] | None,
) -> tuple[RunRecord, Location, str]:
    """Find or begin the run; return it, the place of its group, and what tells it from other networks."""
    parameters: dict[str, Any] = {
        "metric": metric,
        "options": network_key(options),
        "adapters": _digest(bank, adapters),
        "number": len(adapters),
    }
    if units is not None:
        parameters |= {"leave_out": "group", "units": units.tolist()}
    digest = _key(parameters)
    parameters["array"] = f"neural.zarr/{digest[:16]}"
    run = bank.runs.begin("neural", parameters, seed=options.seed)
    return run, bank.derived / parameters["array"], digest


def _key(parameters: Mapping[str, Any]) -> str:
    """Hash what tells a network from others: the parameters of its run, but where it is."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def _made_from(bank: AdapterBank, adapters: Sequence[AdapterRecord], key: str, version: int | None) -> str:
    """Hash what a network is made from; a version of None is the first, which did not say so."""
    said = {} if version is None else {"version": version}
    return digest_of(kind="neural", run=key, **said, **texts_of(bank, adapters), **rows_of(bank, adapters))


def _digest(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> str:
    """Hash all that the distances and the Gram matrix are made from."""
    rows = (f"{r.row}:{r.row_sha256}:{r.scaling}:{r.content_sha256}" for r in adapters)
    return hashlib.sha256(f"{bank.record.scaling} {' '.join(rows)}".encode()).hexdigest()
