"""The workflow of `bank finetune`: a start, a few steps on the dataset's own examples, and the best of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bankdb.bank import AdapterBank
from bankdb.datasets.read import Dataset
from bankdb.datasets.read import Reading as Rows
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import ComputeError, TokenizerError, one_line
from bankdb.progress import Progress, SilentProgress
from bankdb.snapshot import of_one_snapshot
from compute.approaches.options import PredictionOptions
from compute.cluster.machine import core_count, memory_budget
from compute.cluster.options import ClusterLike
from compute.finetuning.checkpoints import Checkpoint, Checkpoints
from compute.finetuning.examples import TrainingExamples, training_examples
from compute.finetuning.finetuned import Finetuned, Setting
from compute.finetuning.options import FinetuneOptions
from compute.finetuning.resources import (
    ModelSize,
    Reading,
    check_training_extra,
    chosen_reading,
    model_size,
    needed_bytes,
    usable_memory,
)
from compute.finetuning.start import Start, start_of, start_record
from compute.finetuning.trainer import Trainer
from compute.finetuning.training import Course, train
from compute.generation.base_model import end_ids, model_fingerprint, model_folder
from compute.generation.generate import chosen_device, load_model, threads_of_torch
from compute.generation.labelled import answer_end, check_labelled
from compute.generation.machine import Machine
from compute.prediction.predict import dataset_name, read_data

# Part of what checkpoints are found again by: raised when a change of the code changes what is trained.
_VERSION = 2
_LIBRARIES = ("torch", "peft", "transformers", "numpy")
_COMPARED = 64


@of_one_snapshot
def finetune(
    bank: AdapterBank,
    data: str | Path | Dataset,
    options: FinetuneOptions | None = None,
    way: PredictionOptions | None = None,
    *,
    name: str | None = None,
    input_column: str | None = None,
    output_column: str | None = None,
    text_column: str | None = None,
    skip_bad_rows: bool = False,
    include_same: bool = False,
    checkpoints: str | Path | None = None,
    cluster: ClusterLike = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Train an adapter for a few steps on a dataset's own examples, by default from the predicted one on.

    A fifth of the examples is held out, and of the start and the steps that are looked back on (powers of two, and the
    last) the one is kept whose loss on them is lowest. The loss is the mean cross-entropy of the answers' tokens. The
    same arguments give the same bytes on the same machine, with the same versions and threads.

    Parameters
    ----------
    data
        A data file, a folder with a training split, or a dataset already read.
    options
        Start, steps, examples, and the base model.
    way
        How the start is predicted; default: Jensen-Shannon, `normalized`.
    input_column, output_column, text_column, skip_bad_rows
        How the data is read: see `AdapterBank.ingest`.
    include_same
        Use an entry of the bank even if it holds the very same dataset.
    checkpoints
        Folder in which training is kept as it goes: a call that was killed goes on from there when it is made again.
        `Finetuned.save` deletes it. None keeps nothing.
    cluster
        Where the bank's own matrices are computed, for approaches that read them: see `compute.predict`.
    memory
        Bytes that may be used; default: half of the machine's memory to predict, and all of it to train.

    Raises
    ------
    ParameterError, PlanError
        An option is out of range, the start is not known, an extra is lacking, or the model does not fit the memory.
    DatasetError, TokenizerError
        Data that cannot be read, has too few examples or no answers, or is too long; a model of another tokenizer.
    AdapterError, ComputeError
        The start does not fit the base model; or a loss is not finite.

    Examples
    --------
    >>> FinetuneOptions(start="zero", steps=4).learning_rate > 0
    True
    """
    rows = bank.reading(input_column, output_column, text_column, skip_bad_rows)
    asked = _Asked(data, rows, name, way, include_same, checkpoints, cluster, memory)
    return _finetune(bank, asked, options or FinetuneOptions(), progress or SilentProgress())


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What `finetune` was asked for, beside the options."""

    data: str | Path | Dataset
    rows: Rows
    name: str | None
    way: PredictionOptions | None
    include_same: bool
    checkpoints: str | Path | None
    cluster: ClusterLike
    memory: int | None


def _finetune(bank: AdapterBank, asked: _Asked, options: FinetuneOptions, progress: Progress) -> Finetuned:
    check_training_extra()
    dataset, _ = read_data(asked.data, asked.rows, memory_budget(asked.memory))
    called = asked.name or dataset_name(asked.data)
    device, folder = chosen_device(options.device), model_folder(options.model or bank.record.base_model)
    end = answer_end(bank.tokenizer, end_ids(folder), folder)
    examples = training_examples(dataset, bank.tokenizer, end, options.examples, options.seed, called)
    _check_tokenizer(bank.tokenizer, folder, dataset, examples, progress)
    start = start_of(
        bank,
        options.start,
        dataset,
        called,
        options.seed,
        way=asked.way,
        include_same=asked.include_same,
        machine=Machine(device=options.device, threads=options.threads),
        cluster=asked.cluster,
        memory=asked.memory,
        progress=progress,
    )
    threads = options.threads or core_count()
    setting = Setting(model_fingerprint(folder, progress), end, device, threads)
    kept = Checkpoints(
        None if asked.checkpoints is None else Path(asked.checkpoints),
        _run_key(start, examples, options, setting, asked.memory),
    )
    call = _Call(
        bank, folder, start, examples, options, setting, usable_memory(asked.memory, device), progress
    )
    with threads_of_torch(threads):
        course, vector = call.trained(kept, called)
    record = start_record(bank, start, dataset, called)
    about = bank.export_record()
    return Finetuned(called, vector, start, examples, options, course, setting, record, about, kept)


class _Call:
    """What one call knows once there is a start."""

    def __init__(
        self,
        bank: AdapterBank,
        folder: Path,
        start: Start,
        examples: TrainingExamples,
        options: FinetuneOptions,
        setting: Setting,
        memory: int,
        progress: Progress,
    ) -> None:
        self._bank, self._folder, self._start, self._examples = bank, folder, start, examples
        self._options, self._setting, self._memory, self._progress = options, setting, memory, progress
        self._all = (*examples.training, *examples.held_out)

    def trained(self, kept: Checkpoints, name: str) -> tuple[Course, Any]:
        """Train, or go on; return how it went, and the best adapter."""
        checkpoint = kept.read(self._start.form.layout.size)
        size = model_size(self._folder)
        if checkpoint is None:
            course = Course(self._reading(size), self._steps(), [], {})
        else:
            course = Course.of_facts(checkpoint.facts)
            self._progress.note(
                f"goes on from step {checkpoint.state.step}, which an earlier run of the same command came to"
            )
        self._tell(size, course.reading)
        trainer = self._trainer(course.reading, name)
        vector = self._run(trainer, course, kept, checkpoint)
        return course, vector

    def _run(self, trainer: Trainer, course: Course, kept: Checkpoints, checkpoint: Checkpoint | None) -> Any:
        try:
            return train(
                trainer,
                self._start.vector,
                self._examples,
                self._options,
                course,
                kept,
                checkpoint,
                self._setting.device,
                self._progress,
            )
        except ComputeError:
            kept.discard()  # it would come to the same step again
            raise

    def _steps(self) -> int | None:
        return None if self._options.budget is not None else self._options.steps

    def _reading(self, size: ModelSize) -> Reading:
        options = self._options
        return chosen_reading(
            size,
            self._start.form.layout.size,
            self._all,
            options.batch_size,
            options.train_dtype,
            self._setting.device,
            self._memory,
        )

    def _tell(self, size: ModelSize, reading: Reading) -> None:
        needed = needed_bytes(size, self._start.form.layout.size, self._all, reading.at_once, reading.dtype)
        why = {
            "given": "as asked for",
            "measured": "the faster here"
            if reading.dtype == "bfloat16"
            else "bfloat16 is not clearly faster here",
            "memory": "which fits the memory, as float32 does not",
        }[reading.chosen]
        parts = ""
        if reading.at_once < min(self._options.batch_size, len(self._examples.training)):
            parts = f", {reading.at_once} examples at a time"
        self._progress.note(
            f"trains from {self._start.told()} on {len(self._examples.training)} examples, with "
            f"{len(self._examples.held_out)} held out; base model in {reading.dtype} ({why}); about "
            f"{needed / 2**30:.1f} GiB of memory needed{parts}, {self._memory / 2**30:.1f} GiB there"
        )

    def _trainer(self, reading: Reading, name: str) -> Trainer:
        import torch

        self._progress.begin("load the base model", 1)
        model = load_model(self._folder, getattr(torch, reading.dtype)).to(self._setting.device)
        check_labelled(model, self._all, name)
        trainer = Trainer(model, self._start.form, self._bank.record.task_type, self._options.learning_rate)
        self._progress.end()
        return trainer


def _check_tokenizer(
    tokenizer: BankTokenizer, folder: Path, dataset: Dataset, examples: TrainingExamples, progress: Progress
) -> None:
    """Raise TokenizerError if the base model brings a tokenizer that gives these examples other ids."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return
    try:
        own = BankTokenizer(folder)
    except TokenizerError as error:
        progress.note(f"the base model's tokenizer is not compared with the bank's: {one_line(error)}")
        return
    if own.fingerprint == tokenizer.fingerprint:
        return
    places = examples.split.training[:_COMPARED]
    texts = [dataset.inputs[place] + dataset.outputs[place] for place in places]
    if own.encode(texts) != tokenizer.encode(texts):
        raise TokenizerError(
            f"{folder}: expected the bank's tokenizer, found one that gives the examples other token ids; pass the "
            "bank's base model with --model"
        )


def _run_key(
    start: Start, examples: TrainingExamples, options: FinetuneOptions, setting: Setting, memory: int | None
) -> str:
    """Hash of everything that changes a number of a run: memory too, since a step's parts are as many as fit."""
    # Where the start comes from is told by its weights, and where the model is by its bytes.
    asked = asdict(replace(options, start="", model=None, device="auto", threads=None))
    content = {
        "finetune": _VERSION,
        "start": start.sha256,
        "examples": examples.sha256,
        "options": asked,
        "setting": asdict(setting),
        "memory": memory,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
