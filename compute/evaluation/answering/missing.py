"""What is not kept yet is generated, each piece once, and kept as it is done: a killed run goes on there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.errors import DatasetError
from bankdb.progress import Progress
from bankdb.records import GenerationRecord
from compute.cluster.options import Cluster
from compute.evaluation.answering.earlier import EarlierAnswers
from compute.evaluation.answering.here import AnswersHere
from compute.evaluation.answering.job import Answering, Job, Refused
from compute.evaluation.answering.workers import AnswersByWorkers
from compute.generation.machine import Machine
from compute.generation.prompts import Prompts, encode_prompts
from compute.generation.settings import AnswerSettings, earlier_settings


def generate_missing(
    bank: AdapterBank,
    jobs: Sequence[Job],
    folder: Path,
    settings: AnswerSettings,
    machine: Machine,
    progress: Progress,
    cluster: Cluster | None = None,
) -> dict[str, str]:
    """Generate what the bank does not keep yet, and keep it; the model is loaded only if there is anything.

    What version 0.1.0 kept is used where it is of this model: see `EarlierAnswers`.

    Parameters
    ----------
    cluster
        Whose workers answer; None answers in this process. Only this process writes the database.

    Returns
    -------
    Targets that could not be answered, with the reason.

    Raises
    ------
    PlanError
        A worker's share of the memory does not hold the base model.
    ComputeError
        A worker finds no such base model, or a task failed.
    """
    missing = _missing(bank, jobs)
    if not missing:
        return {}
    earlier = EarlierAnswers(bank, missing, *earlier_settings(folder, settings), settings.sha256)
    if earlier.is_certain():
        progress.note(earlier.adopt("the model and its settings are the same, byte for byte"))
        missing = _missing(bank, jobs)
        if not missing:
            return {}
    answering: Answering
    if cluster is None:
        answering = AnswersHere(bank, folder, machine, progress)
    else:
        answering = AnswersByWorkers(bank, folder, settings, machine, cluster)
    prompts, refused = _prompts(bank, answering, missing)
    if any(job.key.test_sha256 in prompts for job in earlier.jobs):
        progress.note(earlier.check(answering, prompts))
        missing = _missing(bank, missing)
    ready = [job for job in missing if job.key.test_sha256 in prompts]
    if ready:
        refused |= _keep(bank, answering, ready, prompts, progress)
    return {job.target: refused[job.key.test_sha256] for job in jobs if job.key.test_sha256 in refused}


def _missing(bank: AdapterBank, jobs: Sequence[Job]) -> list[Job]:
    """Return a job for each key of which no answers are kept."""
    return list({job.key: job for job in jobs if bank.generations.find(job.key) is None}.values())


def _prompts(
    bank: AdapterBank, answering: Answering, jobs: Sequence[Job]
) -> tuple[dict[str, Prompts], dict[str, str]]:
    """Tokenize each test split, by its hash; the second are those that cannot be answered, with the reason."""
    prompts: dict[str, Prompts] = {}
    refused: dict[str, str] = {}
    for job in {job.key.test_sha256: job for job in jobs}.values():
        try:
            encoded = encode_prompts(bank.tokenizer, job.split, job.target)
            answering.check(encoded, job.target)
            prompts[job.key.test_sha256] = encoded
        except DatasetError as error:
            refused[job.key.test_sha256] = str(error)
    return prompts, refused


def _keep(
    bank: AdapterBank,
    answering: Answering,
    jobs: Sequence[Job],
    prompts: dict[str, Prompts],
    progress: Progress,
) -> dict[str, str]:
    """Keep answers as they come; return what cannot be answered, by the hash of its test split, with the reason."""
    refused: dict[str, str] = {}
    for job, found in answering.answered(jobs, prompts, progress):
        test = job.key.test_sha256
        if isinstance(found, Refused):
            refused[test] = found.reason
            continue
        bank.generations.keep(GenerationRecord(job.key, found.texts, prompts[test].new_tokens, found.seconds))
    return refused
