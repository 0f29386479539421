"""Answers that version 0.1.0 kept: used where they are of this model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from bankdb.records import GenerationKey
from compute.evaluation.answering.job import Answering, Job
from compute.generation.generate import Answers
from compute.generation.prompts import Prompts

# How many splits, beside the base model's, are answered again to see whether kept answers are the model's.
_CHECKED = 4


class EarlierAnswers:
    """Answers that version 0.1.0 kept: it knew the model by samples, and not which tokens end an answer.

    They are used where those samples were all of the model's bytes and nothing else ends an answer than its
    configuration and tokenizer say; else where some of them, answered again, come out the same.

    Attributes
    ----------
    jobs
        Those that it answered.
    """

    def __init__(
        self, bank: AdapterBank, missing: Sequence[Job], earlier: str, certain: bool, settings: str
    ) -> None:
        self._bank = bank
        self._sha256, self._certain, self._settings = earlier, certain, settings
        self.jobs = [job for job in missing if bank.generations.find(self._key(job)) is not None]

    def is_certain(self) -> bool:
        """Whether there are any, and they are of this model."""
        return bool(self.jobs) and self._certain

    def adopt(self, reason: str) -> str:
        """Keep them under the settings of now; return a line that says why."""
        number = self._bank.generations.adopt(self._sha256, self._settings)
        self.jobs = []
        return f"{number} answered splits that version 0.1.0 kept are used: {reason}"

    def check(self, answering: Answering, prompts: Mapping[str, Prompts]) -> str:
        """Answer some of them again, and adopt all if nothing differs; return a line that says what was found."""
        ready = [job for job in self.jobs if job.key.test_sha256 in prompts]
        base = [job for job in ready if job.adapter is None][:1]
        adapted = [job for job in ready if job.adapter is not None]
        checked = [*base, *adapted[:: max(1, len(adapted) // _CHECKED)][:_CHECKED]]
        for number, job in enumerate(checked, 1):
            kept = self._bank.generations.find(self._key(job))
            ((_, found),) = answering.answered([job], prompts, SilentProgress())
            if kept is not None and not (isinstance(found, Answers) and kept.texts == found.texts):
                return (
                    f"the answers that version 0.1.0 kept are not used, all are generated anew: of {number} "
                    "answered splits of them one comes out otherwise"
                )
        return self.adopt(f"of {len(checked)} that were answered again, every answer is the same")

    def _key(self, job: Job) -> GenerationKey:
        return replace(job.key, settings_sha256=self._sha256)
