"""The workflow of `bank evaluate --finetune`: Rouge-L by the number of training steps, from each start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bankdb.bank import AdapterBank
from bankdb.errors import BankError, DatasetError, ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, GenerationKey, GenerationRecord, now, published
from bankdb.snapshot import of_one_snapshot
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterLike
from compute.curves.here import TrainingHere
from compute.curves.records import CurveStart, LearningCurves, Scores, store_curves
from compute.curves.runs import TrainingRun, TrainingSettings, answer_key, store_run, stored_run
from compute.curves.training import RunPlan, Training, TrainingJob
from compute.curves.workers import TrainingByWorkers
from compute.evaluation.adapters import evaluated_adapters, made_of
from compute.evaluation.answering.job import Job, Refused
from compute.evaluation.answering.missing import generate_missing
from compute.evaluation.evaluate import EvaluationOptions, chosen_targets, test_splits
from compute.evaluation.scores import exact_match, rouge_l
from compute.evaluation.systems import System, evaluated_ways
from compute.finetuning.examples import TrainingExamples, training_examples
from compute.finetuning.options import LEARNING_RATE, ZERO
from compute.generation.base_model import model_folder
from compute.generation.generate import check_extra
from compute.generation.labelled import answer_end
from compute.generation.prompts import Prompts, encode_prompts
from compute.generation.settings import answer_settings
from compute.labels.examples import readings_of, training_split


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """What is trained, and on what.

    Attributes
    ----------
    steps
        Numbers of steps after which the test examples are answered; 0 is the start itself.
    examples
        Of each target's training split; None is all. A fifth is held out.
    batch_size, learning_rate, seed
        Of training; the seed draws the examples too.
    dtype
        Of the base model while it is trained on.
    zero
        Whether to train from an adapter that changes nothing too.
    evaluation
        Targets, test examples, model, and where answers are generated.
    """

    steps: tuple[int, ...] = (0, 2, 4, 8, 16)
    examples: int | None = 32
    batch_size: int = 8
    learning_rate: float = LEARNING_RATE
    seed: int = 0
    dtype: str = "float32"
    zero: bool = True
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 0 or list(self.steps) != sorted(set(self.steps)):
            raise ParameterError(
                f"steps: expected ascending numbers from 0 on, found {list(self.steps)}; such as 0,2,4,8"
            )


@of_one_snapshot
def learning_curves(
    bank: AdapterBank,
    ways: PredictionOptions | Sequence[PredictionOptions] | None = None,
    options: CurveOptions | None = None,
    *,
    leave_out: str | None = None,
    baseline: bool = True,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> LearningCurves:
    """Train on a few examples of each target from each start, and measure on the test splits what each step is worth.

    Answers and losses are kept in the bank as they come: a command that was killed goes on with the next run.

    Parameters
    ----------
    ways
        How starts are predicted, by leave-one-out; default: Jensen-Shannon, `normalized`.
    leave_out
        `adapter`, `group` or `both`, in place of what the ways say.
    baseline
        Also train from `uniform`, with the same left out.
    cluster
        Where distances are computed: options, a `distributed.Client`, or None. Runs are trained and answered there too
        where workers were asked for: by a scheduler, a client, or their number; else in this process.

    Raises
    ------
    ParameterError
        An option is out of range, a target is not in the bank, or an extra is not installed.
    BankError
        The base model cannot be loaded, or no target could be trained on.
    """
    check_extra()
    options, progress = options or CurveOptions(), progress or SilentProgress()
    starts = evaluated_ways(ways or PredictionOptions(), leave_out)
    if any(way.space != "factors" for way in starts):
        raise ParameterError("space: factors are trained here, found delta; leave it out")
    if baseline:
        starts = list(dict.fromkeys([*starts, *(replace(way, approach="uniform") for way in _plain(starts))]))
    with open_cluster(cluster, progress, bank.store.path) as workers:
        curves = _Curves(bank, starts, options, workers, progress)
        if workers.asked:
            curves.complete(workers)
    if not workers.asked:  # this process reads the base model once
        curves.complete()
    return curves.measured()


def _plain(ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """One way for each of what is left out, with nothing that changes it."""
    return [PredictionOptions(leave_out=one) for one in dict.fromkeys(way.leave_out for way in ways)]


class _Curves:
    """One call: what it reads, what is missing, and the record of it."""

    def __init__(
        self,
        bank: AdapterBank,
        ways: Sequence[PredictionOptions],
        options: CurveOptions,
        cluster: Cluster,
        progress: Progress,
    ) -> None:
        self._bank, self._options, self._progress = bank, options, progress
        evaluation = options.evaluation
        self._targets = chosen_targets(bank, evaluation.targets)
        self._splits, self._failed = test_splits(bank, self._targets, evaluation)
        self._folder = model_folder(evaluation.model or bank.record.base_model)
        self._settings = answer_settings(
            self._folder,
            bank.record.tokenizer_fingerprint,
            bank.path / "tokenizer",
            evaluation.machine.dtype,
            progress,
        )
        self._systems, self._rows = evaluated_adapters(bank, ways, cluster, progress)
        self._training = TrainingSettings(
            self._settings.model,
            self._settings.tokenizer,
            options.dtype,
            options.learning_rate,
            options.batch_size,
            options.seed,
        )
        self._examples = self._read_examples()
        self._starts = [system for system in self._systems if system.leave_out is not None]
        self._starts += [system for system in self._systems if system.approach == "base" and options.zero]

    def complete(self, cluster: Cluster | None = None) -> None:
        """Generate and train what is missing, by workers or, where None, in this process; keep it as it comes."""
        evaluation = self._options.evaluation
        self._failed |= generate_missing(
            self._bank,
            self._jobs(),
            self._folder,
            self._settings,
            evaluation.machine,
            self._progress,
            cluster,
        )
        missing = self._missing()
        if missing:
            self._keep(missing, self._training_by(cluster))

    def measured(self) -> LearningCurves:
        """Score what is kept by now, and store the curves."""
        evaluated = [record for record in self._targets if record.name not in self._failed]
        if not evaluated:
            reasons = "; ".join(list(self._failed.values())[:2])
            raise BankError(f"no target could be trained on, of {len(self._targets)}: {reasons}")
        found = self._record(evaluated)
        store_curves(self._bank, found)
        return found

    def _training_by(self, cluster: Cluster | None) -> Training:
        options, bank = self._options, self._bank
        machine = options.evaluation.machine
        if cluster is None:
            return TrainingHere(bank, self._folder, machine, options.dtype, options.learning_rate)
        return TrainingByWorkers(
            bank, self._folder, self._settings.model, machine, options.dtype, options.learning_rate, cluster
        )

    def _read_examples(self) -> dict[str, TrainingExamples]:
        end = answer_end(self._bank.tokenizer, self._settings.ends, self._folder)
        found, readings = {}, readings_of(self._bank, self._targets)
        for record in self._targets:
            try:
                found[record.name] = training_examples(
                    training_split(record, reading=readings[record.name]),
                    self._bank.tokenizer,
                    end,
                    self._options.examples,
                    self._options.seed,
                    record.name,
                )
            except DatasetError as error:
                self._failed[record.name] = str(error)
        return found

    def _pairs(self) -> list[tuple[System, str]]:
        names = [record.name for record in self._targets if record.name not in self._failed]
        return [(system, name) for name in names for system in self._starts]

    def _jobs(self) -> list[Job]:
        """The base model, own adapters and starts, as any evaluation answers with them."""
        scaling = self._scaling
        return [
            Job(
                answer_key("", made_of(adapter, scaling), 0, split.sha256, self._settings.sha256),
                name,
                split,
                adapter,
            )
            for name, split in self._splits.items()
            if name not in self._failed
            for adapter in (self._rows[name][system.name] for system in self._systems)
        ]

    @property
    def _scaling(self) -> float:
        scaling = self._bank.record.scaling
        assert scaling is not None, "a bank with adapters has a scaling"
        return scaling

    def _run(self, system: System, name: str) -> tuple[str, str]:
        """Hashes of a start and of the run from it."""
        start = made_of(self._rows[name][system.name], self._scaling)
        return start, self._training.run_sha256(start, self._examples[name].sha256)

    def _is_kept(self, system: System, name: str) -> bool:
        start, key = self._run(system, name)
        run = stored_run(self._bank, key)
        if run is None or run.steps < max(self._options.steps):
            return False
        if any(str(step) not in run.held_out for step in self._options.steps):
            return False
        return all(self._find(start, key, step, name) is not None for step in self._options.steps)

    def _place(self, start: str, key: str, step: int, name: str) -> GenerationKey:
        return answer_key(key, start, step, self._splits[name].sha256, self._settings.sha256)

    def _find(self, start: str, key: str, step: int, name: str) -> Any:
        return self._bank.generations.find(self._place(start, key, step, name))

    def _missing(self) -> list[TrainingJob]:
        """The runs that are not kept whole; each is done once, whichever starts are the same."""
        missing: dict[str, list[System]] = {}
        for system, name in self._pairs():
            if not self._is_kept(system, name):
                missing.setdefault(name, []).append(system)
        found: dict[str, TrainingJob] = {}
        for name, systems in missing.items():
            try:
                prompts = encode_prompts(self._bank.tokenizer, self._splits[name], name)
            except DatasetError as error:
                self._failed[name] = str(error)
                continue
            jobs = [self._job(system, name, prompts) for system in systems]
            found |= {job.plan.key: job for job in jobs}
        return list(found.values())

    def _job(self, system: System, name: str, prompts: Prompts) -> TrainingJob:
        options = self._options
        start, key = self._run(system, name)
        answers = {
            step: self._place(start, key, step, name)
            for step in options.steps
            if self._find(start, key, step, name) is None
        }
        plan = RunPlan(
            key,
            name,
            self._examples[name],
            prompts,
            options.steps,
            tuple(answers),
            options.batch_size,
            options.seed,
            self._scaling,
        )
        shown = ZERO if system.approach == "base" else system.name
        return TrainingJob(plan, shown, self._rows[name][system.name], answers)

    def _keep(self, jobs: Sequence[TrainingJob], training: Training) -> None:
        """Keep answers as they come, and each run when all of its answers are kept."""
        bank = self._bank
        for job, found in training.found(jobs, self._progress):
            if isinstance(found, Refused):
                self._failed[job.plan.target] = found.reason
            elif isinstance(found, TrainingRun):
                store_run(bank, found)
            else:
                texts = tuple(bank.tokenizer.decode(ids) for ids in found.ids)
                record = GenerationRecord(
                    job.answers[found.step], texts, job.plan.prompts.new_tokens, found.seconds
                )
                bank.generations.keep(record)

    def _record(self, evaluated: Sequence[AdapterRecord]) -> LearningCurves:
        own = next(system for system in self._systems if system.approach == "own")
        base = next(system for system in self._systems if system.approach == "base")
        names = [record.name for record in evaluated]
        starts = tuple(self._start(system, names) for system in self._starts)
        settings = self._described()
        text = json.dumps([settings, names, self._options.steps, [asdict(one) for one in starts]])
        return LearningCurves(
            hashlib.sha256(text.encode()).hexdigest()[:16],
            now(),
            settings,
            self._bank.record.identity,
            tuple(names),
            tuple(record.group for record in evaluated),
            self._options.steps,
            self._plain_scores(base, names),
            self._plain_scores(own, names),
            starts,
            dict(self._failed),
        )

    def _described(self) -> dict[str, Any]:
        options = self._options
        evaluation = options.evaluation
        return {
            "model": published(evaluation.model or self._bank.record.base_model),
            "dtype": evaluation.machine.dtype,
            "training_dtype": options.dtype,
            "examples": options.examples,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "training_seed": options.seed,
            "max_examples": evaluation.max_examples,
            "resamples": evaluation.resamples,
            "seed": evaluation.seed,
            "sha256": self._settings.sha256,
        }

    def _plain_scores(self, system: System, names: Sequence[str]) -> Scores:
        return Scores.of(
            [
                self._scored(
                    self._find(made_of(self._rows[name][system.name], self._scaling), "", 0, name).texts,
                    name,
                )
                for name in names
            ]
        )

    def _start(self, system: System, names: Sequence[str]) -> CurveStart:
        runs: list[TrainingRun] = []
        scores: list[list[tuple[float, float]]] = [[] for _ in self._options.steps]
        for name in names:
            start, key = self._run(system, name)
            run = stored_run(self._bank, key)
            assert run is not None, "it was trained above"
            runs.append(run)
            for place, step in enumerate(self._options.steps):
                scores[place].append(self._scored(self._find(start, key, step, name).texts, name))
        return CurveStart(
            ZERO if system.approach == "base" else system.name,
            system.leave_out,
            tuple(map(Scores.of, scores)),
            tuple(tuple(run.held_out[str(step)] for run in runs) for step in self._options.steps),
            tuple(run.seconds for run in runs),
        )

    def _scored(self, texts: Sequence[str], name: str) -> tuple[float, float]:
        pairs = list(zip(texts, self._splits[name].references, strict=True))
        rouge = float(np.mean([rouge_l(text, references) for text, references in pairs]))
        return rouge, float(np.mean([exact_match(text, references) for text, references in pairs]))
