"""An evaluation counted before it runs: answers, tokens, memory of a worker, and the time that it may take.

Whether two systems have the same adapter for a target is not known before coefficients are computed, and what the bank
keeps is not looked up: both are generated once at the most, so that all is an upper bound but the time of answers as
long as the references.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.bank import AdapterBank
from bankdb.datasets.held_out import HeldOut
from bankdb.errors import BankError, DatasetError
from bankdb.progress import Progress, SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.machine import core_count, memory_budget
from compute.evaluation.answering.workers import answering_bytes
from compute.evaluation.evaluate import EvaluationOptions, chosen_targets, test_splits
from compute.evaluation.systems import compared_systems
from compute.generation.base_model import model_folder
from compute.generation.generate import Generator, check_extra, load_generator, threads_of_torch
from compute.generation.model_size import model_size
from compute.generation.prompts import Prompts, encode_prompts


@dataclass(frozen=True, slots=True)
class AnswerRates:
    """Seconds of one thread of torch, measured on a split of the bank, by the base model.

    Attributes
    ----------
    read
        For each token of a prompt that is read.
    generated
        For each token that is generated, in batches as an evaluation makes them.
    """

    read: float
    generated: float


@dataclass(frozen=True, slots=True)
class EvaluationForecast:
    """What `evaluate` will generate on a bank that keeps no answers.

    Attributes
    ----------
    systems, targets, examples
        What answers, what is answered, and test examples of all targets.
    answers
        `systems * examples`, at the most.
    read
        Tokens of prompts, by all systems; what prompts share is read once a batch.
    expected, most
        Tokens generated, if each answer is as long as its longest reference, and at the limit of its task.
    memory, share
        Bytes that a worker needs, roughly, and may use.
    workers
        That answer at once.
    rates
        None where they were not measured.
    failures
        Targets that cannot be evaluated, with the reason.
    """

    systems: int
    targets: int
    examples: int
    answers: int
    read: int
    expected: int
    most: int
    memory: int
    share: int
    workers: int
    rates: AnswerRates | None
    failures: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether a worker's share holds what it needs."""
        return self.memory <= self.share

    @property
    def seconds(self) -> tuple[float, float] | None:
        """If answers are as long as their references, and at the most; workers do not slow each other down."""
        if self.rates is None:
            return None
        reading = self.rates.read * self.read
        expected, most = (
            (reading + self.rates.generated * tokens) / self.workers for tokens in (self.expected, self.most)
        )
        return expected, most

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"fits": self.fits, "seconds": self.seconds}


def forecast_evaluation(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    options: EvaluationOptions | None = None,
    *,
    workers: int | None = None,
    memory: int | None = None,
    measure: bool = False,
    progress: Progress | None = None,
) -> EvaluationForecast:
    """Count what `evaluate` will generate; nothing of the bank is changed.

    Parameters
    ----------
    ways
        All of them, with the baselines that are to be compared.
    workers, memory
        Processes that answer at once, and the bytes that they may use together; default: the cores, and half of the
        memory of this machine.
    measure
        Load the base model here, and answer one split of middle length twice, for the expected time.

    Raises
    ------
    ParameterError
        A target is not in the bank, or an extra is not installed.
    BankError
        There is no such base model, or no target can be evaluated.
    """
    options, shown = options or EvaluationOptions(), progress or SilentProgress()
    chosen = chosen_targets(bank, options.targets)
    splits, failures = test_splits(bank, chosen, options)
    prompts, expected = _encoded(bank, splits, failures)
    if not prompts:
        raise BankError(f"no target could be evaluated, of {len(chosen)}: {next(iter(failures.values()))}")
    folder, machine = model_folder(options.model or bank.record.base_model), options.machine
    systems, slots = len(compared_systems(ways)), workers or core_count()
    needed = answering_bytes(
        model_size(folder), bank.layout, machine.dtype, machine.batch_size, list(prompts.values())
    )
    examples = sum(len(one.ids) for one in prompts.values())
    return EvaluationForecast(
        systems=systems,
        targets=len(prompts),
        examples=examples,
        answers=systems * examples,
        read=systems * sum(map(_tokens, prompts.values())),
        expected=systems * expected,
        most=systems * sum(len(one.ids) * one.new_tokens for one in prompts.values()),
        memory=needed,
        share=memory_budget(memory) // slots,
        workers=slots,
        rates=_measured(bank, folder, options, prompts, shown) if measure else None,
        failures=failures,
    )


def _encoded(
    bank: AdapterBank, splits: Mapping[str, HeldOut], failures: dict[str, str]
) -> tuple[dict[str, Prompts], int]:
    """Return the prompts of each target, and the tokens of all longest references; add those that have none."""
    prompts, expected = {}, 0
    for name, split in splits.items():
        try:
            prompts[name] = encode_prompts(bank.tokenizer, split, name)
        except DatasetError as error:
            failures[name] = str(error)
            continue
        for references in split.references:
            longest = max(map(len, bank.tokenizer.encode(list(references))))
            expected += max(1, longest - bank.tokenizer.added_tokens())
    return prompts, expected


def _tokens(prompts: Prompts) -> int:
    """Tokens that are read: what is shared once, as if all were one batch."""
    return sum(map(len, prompts.ids)) - prompts.shared * (len(prompts.ids) - 1)


def _measured(
    bank: AdapterBank,
    folder: Path,
    options: EvaluationOptions,
    prompts: Mapping[str, Prompts],
    progress: Progress,
) -> AnswerRates:
    check_extra()
    machine = options.machine
    progress.begin("measure answers", 2)
    # Without end tokens every answer is as long as is asked for.
    adapted = load_generator(
        folder,
        bank.layout,
        bank.tokenizer,
        device=machine.device,
        dtype=machine.dtype,
        batch_size=machine.batch_size,
    ).adapted
    generator = Generator(adapted, None, (), machine.batch_size)
    middle = statistics.median_low([_tokens(one) for one in prompts.values()])
    sample = next(one for one in prompts.values() if _tokens(one) == middle)
    with threads_of_torch(1):
        _seconds(generator, sample, 1)  # what is made at the first use is not measured
        reading = _seconds(generator, sample, 1)
        progress.advance()
        whole = _seconds(generator, sample, sample.new_tokens)
        progress.advance()
    progress.end()
    generated = len(sample.ids) * max(1, sample.new_tokens - 1)
    return AnswerRates(reading / middle, max(whole - reading, 0.0) / generated)


def _seconds(generator: Generator, prompts: Prompts, new_tokens: int) -> float:
    begin = time.perf_counter()
    generator.answer_ids(Prompts(prompts.ids, prompts.shared, new_tokens))
    return time.perf_counter() - begin
