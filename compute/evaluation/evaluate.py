"""The workflow of `bank evaluate`: what answers, what it answers, and how good that is (section 4)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.datasets.held_out import HeldOut, held_out_files, read_held_out
from bankdb.errors import BankError, DatasetError, ParameterError, listed
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, GenerationKey, GenerationRecord, now, published
from bankdb.snapshot import of_one_snapshot
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterLike
from compute.evaluation.adapters import evaluated_adapters, made_of
from compute.evaluation.answering.job import Job
from compute.evaluation.answering.missing import generate_missing
from compute.evaluation.bootstrap import RESAMPLES
from compute.evaluation.records import Evaluation, store_evaluation
from compute.evaluation.scores import (
    Failure,
    Outcome,
    Sample,
    Target,
    exact_match,
    of_predicted,
    rouge_l,
)
from compute.evaluation.systems import (
    EvaluatedAdapter,
    System,
    compared_ways,
    evaluated_ways,
    with_baselines,
)
from compute.evaluation.weight_space import WeightSpaceTable, weight_space_table
from compute.generation.base_model import model_folder
from compute.generation.generate import check_extra
from compute.generation.machine import Machine
from compute.generation.prompts import MARGIN
from compute.generation.settings import answer_settings
from compute.labels.answer_labels import LabelOptions
from compute.labels.examples import readings_of

MAX_EXAMPLES = 30
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What is evaluated, and where.

    Attributes
    ----------
    targets
        Names; empty is every adapter of the bank.
    data
        Folder with `NAME/test.jsonl`; None looks beside the training splits that were ingested.
    max_examples
        The first so many test examples of each target; None is all.
    model
        Folder or hub name of the base model; None is the name that the bank has.
    machine
        Where answers are generated.
    resamples, seed
        Of the bootstrap.
    """

    targets: tuple[str, ...] = ()
    data: str | Path | None = None
    max_examples: int | None = MAX_EXAMPLES
    model: str | None = None
    machine: Machine = field(default_factory=Machine)
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_examples", "resamples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ParameterError(f"{name.replace('_', '-')}: expected at least 1, found {value}")


Ways = PredictionOptions | Sequence[PredictionOptions] | None


@overload
def evaluate(
    bank: AdapterBank,
    ways: Ways = ...,
    options: EvaluationOptions | None = ...,
    *,
    leave_out: str | None = ...,
    baselines: bool = ...,
    weights_only: Literal[False] = ...,
    cluster: ClusterLike = ...,
    progress: Progress | None = ...,
) -> Evaluation: ...


@overload
def evaluate(
    bank: AdapterBank,
    ways: Ways = ...,
    options: EvaluationOptions | None = ...,
    *,
    leave_out: str | None = ...,
    baselines: bool = ...,
    weights_only: Literal[True],
    cluster: ClusterLike = ...,
    progress: Progress | None = ...,
) -> WeightSpaceTable: ...


def evaluate(
    bank: AdapterBank,
    ways: Ways = None,
    options: EvaluationOptions | None = None,
    *,
    leave_out: str | None = None,
    baselines: bool = True,
    weights_only: bool = False,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> Evaluation | WeightSpaceTable:
    """Measure whether predicted adapters help: the base model, own and predicted adapters answer the test splits.

    Answers are kept in the bank as they come: what is there is not generated again, and where all are there
    neither torch nor the model is loaded. The evaluation is stored in the bank's folder.

    Parameters
    ----------
    ways
        How adapters are predicted, by leave-one-out; default: the paper's metrics and approaches.
    leave_out
        `adapter`, `group` or `both`, in place of what the ways say.
    baselines
        Also evaluate `uniform` and `nearest` by Jensen-Shannon, with the same left out.
    weights_only
        Generate nothing, and tell how near predictions are to the trained weights; the oracle is a baseline too.
    cluster
        Where distances are computed: options, a `distributed.Client`, or None. Answers are generated there too where
        workers were asked for: by a scheduler, a client, or their number; else by threads of this process.

    Returns
    -------
    The evaluation; targets that could not be evaluated are in its `failures`. Of weights only, a table.

    Raises
    ------
    ParameterError
        An option is out of range, a target is not in the bank, or an extra is not installed.
    BankError
        The base model cannot be loaded, or no target could be evaluated.

    Examples
    --------
    >>> table = evaluate(bank, PredictionOptions(), weights_only=True)
    >>> [row.options.approach for row in table.rows]
    ['uniform', 'nearest', 'normalized', 'oracle']
    """
    chosen = evaluated_ways(ways, leave_out)
    if weights_only:
        left_out = list(dict.fromkeys(way.leave_out for way in chosen))
        plain = list(dict.fromkeys(replace(way, leave_out="adapter") for way in chosen))
        compared = compared_ways(plain) if baselines else plain
        return weight_space_table(bank, compared, leave_out=left_out, cluster=cluster, progress=progress)
    chosen = with_baselines(chosen) if baselines else chosen
    options, progress = options or EvaluationOptions(), progress or SilentProgress()
    chosen = [
        replace(way, model=options.model) if way.how.reads_labels and way.model is None else way
        for way in chosen
    ]
    return _evaluate(bank, chosen, options, cluster, progress=progress)


@of_one_snapshot
def _evaluate(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    options: EvaluationOptions,
    cluster: ClusterLike,
    *,
    progress: Progress,
) -> Evaluation:
    check_extra()
    chosen = chosen_targets(bank, options.targets)
    splits, failed = test_splits(bank, chosen, options)
    folder = model_folder(options.model or bank.record.base_model)
    settings = answer_settings(
        folder, bank.record.tokenizer_fingerprint, bank.path / "tokenizer", options.machine.dtype, progress
    )
    generating = functools.partial(
        generate_missing, bank, folder=folder, settings=settings, machine=options.machine, progress=progress
    )
    with open_cluster(cluster, progress, bank.store.path) as workers:
        systems, rows = evaluated_adapters(bank, ways, workers, progress, _labels(options, splits))
        keys = _keys(bank, systems, rows, splits, settings.sha256)
        jobs = [Job(key, name, splits[name], rows[name][system]) for (system, name), key in keys.items()]
        if workers.asked:
            failed |= generating(jobs=jobs, cluster=workers)
    if not workers.asked:  # threads of this process are as quick, and read the base model once
        failed |= generating(jobs=jobs)
    evaluated = [record for record in chosen if record.name not in failed]
    if not evaluated:
        reasons = "; ".join(list(failed.values())[:2])
        raise BankError(f"no target could be evaluated, of {len(chosen)}: {reasons}")
    kept = {key: _kept(bank, key) for (_, name), key in keys.items() if name not in failed}
    outcomes = [
        _outcome(system, name, splits[name], kept[keys[system.name, name]], rows[name][system.name])
        for name in (record.name for record in evaluated)
        for system in systems
    ]
    evaluation = _evaluation(
        bank, options, systems, evaluated, splits, outcomes, kept, failed, settings.sha256
    )
    store_evaluation(bank, evaluation)
    for line in of_predicted([target.name for target in evaluation.targets if target.predicted]):
        progress.note(line)
    return evaluation


def _labels(options: EvaluationOptions, targets: Collection[str]) -> LabelOptions:
    """What reads labels reads those of the targets that have a test split, and answers where answers are generated."""
    return LabelOptions(options.machine, None if options.data is None else Path(options.data), tuple(targets))


def chosen_targets(bank: AdapterBank, names: Sequence[str]) -> list[AdapterRecord]:
    """Return the adapters of these names, or all. Raises ParameterError for a name that is not in the bank."""
    adapters = {record.name: record for record in ready_adapters(bank)}
    unknown = [name for name in names if name not in adapters]
    if unknown:
        raise ParameterError(
            f"targets: expected names of adapters in the bank, found {listed(unknown)}; "
            "`bank list` shows the names"
        )
    return [adapters[name] for name in dict.fromkeys(names)] or list(adapters.values())


def test_splits(
    bank: AdapterBank, targets: Sequence[AdapterRecord], options: EvaluationOptions
) -> tuple[dict[str, HeldOut], dict[str, str]]:
    """Read the test split of each target; those without one, with the reason."""
    data = None if options.data is None else Path(options.data)
    splits: dict[str, HeldOut] = {}
    failed: dict[str, str] = {}
    readings = readings_of(bank, targets)
    for record in targets:
        reading = readings[record.name] if data is None else readings[record.name].elsewhere
        try:
            splits[record.name] = read_held_out(held_out_files(record, data), options.max_examples, reading)
        except DatasetError as error:
            failed[record.name] = str(error)
    return splits, failed


def _keys(
    bank: AdapterBank,
    systems: Sequence[System],
    rows: Mapping[str, Mapping[str, EvaluatedAdapter | None]],
    splits: Mapping[str, HeldOut],
    settings: str,
) -> dict[tuple[str, str], GenerationKey]:
    """What the answers of each system to each target are kept under."""
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    keys = {}
    for name, split in splits.items():
        for system in systems:
            adapter = made_of(rows[name][system.name], scaling)
            keys[system.name, name] = GenerationKey(adapter, split.sha256, settings)
    return keys


def _kept(bank: AdapterBank, key: GenerationKey) -> GenerationRecord:
    record = bank.generations.find(key)
    if record is None:
        raise BankError("answers that were kept are gone: another process changed the bank; run it again")
    return record


def _outcome(
    system: System,
    target: str,
    split: HeldOut,
    kept: GenerationRecord,
    adapter: EvaluatedAdapter | None,
) -> Outcome:
    pairs = list(zip(kept.texts, split.references, strict=True))
    rouge = tuple(rouge_l(text, references) for text, references in pairs)
    exact = tuple(int(exact_match(text, references)) for text, references in pairs)
    as_is = tuple(int(exact_match(text, references, stripped=False)) for text, references in pairs)
    samples = zip(split.inputs, split.references, kept.texts, strict=True)
    return Outcome(
        system=system.name,
        target=target,
        n=len(pairs),
        rouge=float(np.mean(rouge)),
        exact=float(np.mean(exact)),
        exact_unstripped=float(np.mean(as_is)),
        rouge_by_example=rouge,
        exact_by_example=exact,
        exact_unstripped_by_example=as_is,
        samples=tuple(Sample(*sample) for sample in list(samples)[:_SAMPLES]),
        sources=() if adapter is None else adapter.largest(),
        effective_sources=None if adapter is None else adapter.effective,
        adapter_sha256=kept.key.adapter_sha256,
        seconds=kept.seconds,
        weight_error=None if adapter is None else adapter.weight_error,
    )


def _evaluation(
    bank: AdapterBank,
    options: EvaluationOptions,
    systems: Sequence[System],
    targets: Sequence[AdapterRecord],
    splits: Mapping[str, HeldOut],
    outcomes: Sequence[Outcome],
    kept: Mapping[GenerationKey, GenerationRecord],
    failed: Mapping[str, str],
    settings: str,
) -> Evaluation:
    predicted = set(bank.predicted_among(targets))
    limits = {key.test_sha256: record.new_tokens for key, record in kept.items()}
    about = bank.record
    described = tuple(
        Target(
            record.name,
            record.group,
            len(splits[record.name]),
            limits[splits[record.name].sha256],
            splits[record.name].sha256,
            record.name in predicted,
        )
        for record in targets
    )
    text = json.dumps(
        [settings, options.resamples, options.seed]
        + [[outcome.system, outcome.target, outcome.adapter_sha256] for outcome in outcomes]
        + [[target.name, target.test_sha256] for target in described]
    )
    return Evaluation(
        identity=hashlib.sha256(text.encode()).hexdigest()[:16],
        created=now(),
        settings={
            "model": published(options.model or about.base_model),
            "dtype": options.machine.dtype,
            "max_examples": options.max_examples,
            "margin": MARGIN,
            "decoding": "greedy",
            "resamples": options.resamples,
            "seed": options.seed,
            "sha256": settings,
        },
        bank=_described(bank),
        systems=tuple(systems),
        targets=described,
        outcomes=tuple(outcomes),
        failures=tuple(Failure(name, reason) for name, reason in failed.items()),
        seconds=float(sum(record.seconds for record in kept.values())),
    )


def _described(bank: AdapterBank) -> dict[str, Any]:
    about = bank.record
    return {
        "identity": about.identity,
        "base_model": about.base_model,
        "adapters": len(ready_adapters(bank)),
        "parameters": about.parameters,
        "scaling": about.scaling,
        "tokenizer": published(about.tokenizer_name),
    }
