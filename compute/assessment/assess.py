"""The workflow of `bank evaluate --adapter`: do these adapters help, on these test examples?"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.datasets.held_out import HeldOut, read_held_out, test_files
from bankdb.datasets.read import Dataset, Reading
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import DatasetError, ParameterError
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import is_base_model
from bankdb.progress import Progress, SilentProgress
from bankdb.records import BankRecord, published
from bankdb.templates.sandbox import ChatTemplate
from compute.approaches.options import PredictionOptions
from compute.assessment.answers import Asked, KeptAnswers, all_answers
from compute.assessment.records import ADAPTER, BASE, BASE_NAME, COMPARED, Assessed, Assessment
from compute.cluster.options import ClusterOptions
from compute.evaluation.bootstrap import RESAMPLES
from compute.evaluation.scores import exact_match, rouge_l
from compute.generation.adapters import GivenAdapter, distinct_names, read_given, stated_base_model
from compute.generation.base_model import model_folder
from compute.generation.generate import check_extra
from compute.generation.machine import Machine
from compute.generation.prompts import MARGIN
from compute.prediction.predict import predict
from compute.prediction.prediction import Prediction

COMPARABLE = ("uniform", "nearest")
MAX_EXAMPLES = 30
# The bootstrap's shares, resamples times examples, in memory.
_MOST_SHARES = 2**27


@dataclass(frozen=True, slots=True)
class AssessmentOptions:
    """How adapters are assessed, and where.

    Attributes
    ----------
    model
        Folder or hub name of the base model; None is the one that the adapters state.
    max_examples
        The first so many test examples; None is all.
    input_column, output_column, skip_bad_rows
        How the test examples are read, and the training examples if some are given: see `AdapterBank.ingest`.
    text_column
        The one column of the training examples that is read, if some are given.
    machine
        Where answers are generated.
    memory
        Bytes that predicting what is compared with may use.
    resamples, seed
        Of the bootstrap.
    """

    model: str | Path | None = None
    max_examples: int | None = MAX_EXAMPLES
    input_column: str | None = None
    output_column: str | None = None
    text_column: str | None = None
    skip_bad_rows: bool = False
    machine: Machine = field(default_factory=Machine)
    memory: int | None = None
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_examples", "resamples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ParameterError(f"{name.replace('_', '-')}: expected at least 1, found {value}")

    def reading(self, template: Callable[[], ChatTemplate | None] | None) -> Reading:
        """Return how the test examples are read."""
        return Reading(
            self.input_column, self.output_column, skip_bad_rows=self.skip_bad_rows, template=template
        )


def check_test(
    test: str | Path,
    options: AssessmentOptions | None = None,
    template: Callable[[], ChatTemplate | None] | None = None,
) -> HeldOut:
    """Read the test examples that `assess` would; for whoever does something long before it.

    Parameters
    ----------
    template
        What gives the chat template of the tokenizer; asked if the examples are conversations.

    Raises
    ------
    ParameterError
        An extra is not installed, or there are more examples than the bootstrap has memory for.
    DatasetError, PlanError
        The examples cannot be read, or none of them has an answer.
    """
    check_extra()
    options = options or AssessmentOptions()
    split = read_held_out(test_files(Path(test)), options.max_examples, options.reading(template))
    if not any(answer.strip() for answers in split.references for answer in answers):
        column = "output" if split.rule is None else split.rule.columns[-1]
        raise DatasetError(
            f"{test}: expected answers in column {column!r}, found none in {len(split)} examples; name "
            "the right column with --output-column"
        )
    if len(split) * options.resamples > _MOST_SHARES:
        raise ParameterError(
            f"resamples: expected at most {max(1, _MOST_SHARES // len(split)):,} of {len(split):,} examples, found "
            f"{options.resamples:,}; lower --resamples, or --max-examples"
        )
    return split


def assess(
    adapters: str | Path | Sequence[str | Path],
    test: str | Path,
    options: AssessmentOptions | None = None,
    *,
    bank: AdapterBank | None = None,
    compare: Sequence[str] = (),
    data: str | Path | Dataset | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Measure whether adapters help on test examples of one's own: the base model and each adapter answer them.

    Parameters
    ----------
    adapters
        Folders: predicted, trained, anybody's that fit the base model, whatever their rank and modules.
    test
        A data file, or a folder with a test split.
    bank
        Where answers are kept and found again, and what `compare` is predicted from. Its tokenizer is used.
    compare
        `uniform`, the mean of all adapters of the bank, and `nearest`, the adapter whose dataset is the nearest by
        Jensen-Shannon.
    data
        The training examples that belong to the test: the nearest is found by them, and an entry of the bank that
        holds the very same is left out. Without them by the inputs of the test examples.

    Raises
    ------
    ParameterError
        An option is out of range, an extra is not installed, or there is nothing to compare with.
    AdapterError
        An adapter is refused, or does not fit the base model.
    DatasetError, TokenizerError, BankError
        The examples cannot be read or answered, or the base model cannot be loaded.
    """
    options, shown = options or AssessmentOptions(), progress or SilentProgress()
    folders = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    _check_asked(folders, compare, bank, data)
    split = check_test(test, options, functools.partial(_template, bank, folders, options))
    names = distinct_names(folders, (BASE_NAME, *COMPARABLE))
    given = [read_given(folder, name) for folder, name in zip(folders, names, strict=True)]
    used = _usable(bank, given, bool(compare), shown)
    folder = model_folder(stated_base_model(given) if options.model is None else options.model)
    notes = [*split.notes, *(f"{one.name}: {note}" for one in given for note in one.notes)]
    compared = (
        [] if used is None or not compare else _compared(used, compare, split, data, options, shown, notes)
    )
    for note in notes:
        shown.note(note)
    by_name: dict[str, GivenAdapter | None] = {BASE_NAME: None}
    by_name |= {one.name: one for one in (*given, *compared)}
    asked = Asked(by_name, split, str(test))
    kept = KeptAnswers.of(used, folder, options.machine.dtype, shown)
    tokenizer = BankTokenizer(folder) if used is None else used.tokenizer
    texts = all_answers(asked, folder, tokenizer, options.machine, kept, shown)
    systems = [_assessed(asked, name, texts[name], [one.name for one in compared]) for name in by_name]
    return _assessment(Path(test).name, asked, systems, options, given, notes)


def _template(
    bank: AdapterBank | None, folders: Sequence[str | Path], options: AssessmentOptions
) -> ChatTemplate | None:
    """Return the chat template of the tokenizer that answers are generated with."""
    if bank is not None:
        return bank.tokenizer.chat_template
    model = options.model
    if model is None:
        model = stated_base_model([read_given(folder) for folder in folders])
    return BankTokenizer(model_folder(model)).chat_template


def _check_asked(
    folders: Sequence[str | Path],
    compare: Sequence[str],
    bank: AdapterBank | None,
    data: str | Path | Dataset | None,
) -> None:
    if not folders:
        raise ParameterError("adapter: expected at least one folder, found none")
    unknown = [name for name in compare if name not in COMPARABLE]
    if unknown:
        raise ParameterError(f"compare: expected {' or '.join(COMPARABLE)}, found {unknown[0]!r}")
    if compare and bank is None:
        raise ParameterError(
            f"compare: {compare[0]} is predicted from a bank, and none is there; pass --bank PATH (or set BANK_PATH)"
        )
    if data is not None and not compare:
        raise ParameterError("data: goes with compare, which is predicted for it")


def _usable(
    bank: AdapterBank | None, given: Sequence[GivenAdapter], needed: bool, progress: Progress
) -> AdapterBank | None:
    """Return the bank if it is of the adapters' base model; else None, and say so, unless it is needed."""
    if bank is None:
        return None
    record = bank.record
    known = (record.base_model, *record.base_model_aliases)
    other = next((one for one in given if not is_base_model(one.base_model, known)), None)
    if other is None:
        return bank
    what = f"{other.name} states base model {other.base_model!r}, the bank is of {record.base_model!r}"
    if needed:
        raise ParameterError(
            f"compare: {what}; pass the bank of the same base model, or name it with `bank alias add`"
        )
    progress.note(f"{bank.path} is not used: {what}")
    return None


def _compared(
    bank: AdapterBank,
    compare: Sequence[str],
    split: HeldOut,
    data: str | Path | Dataset | None,
    options: AssessmentOptions,
    progress: Progress,
    notes: list[str],
) -> list[GivenAdapter]:
    """Return what adapters are compared with, predicted from the bank."""
    ways = [PredictionOptions(approach=name) for name in dict.fromkeys(compare)]
    source = _inputs_of(split) if data is None else data
    found = predict(
        bank,
        source,
        ways,
        input_column=options.input_column,
        output_column=options.output_column,
        text_column=options.text_column,
        skip_bad_rows=options.skip_bad_rows,
        cluster=ClusterOptions(processes=False, memory=options.memory),
        memory=options.memory,
        progress=progress,
    )
    made = [_given_of(prediction) for prediction in found]
    notes += [f"{one.name}: {one.about}" for one in made]
    if data is None:
        notes.append(
            f"compared with the bank by the inputs of the {len(split)} test examples alone; give the training examples "
            "with --data for the distances that predictions use"
        )
    return made


def _inputs_of(split: HeldOut) -> Dataset:
    """Return the inputs as a dataset; their answers are what is asked for, and no part of it."""
    digest = hashlib.sha256(f"inputs alone of {split.sha256}".encode()).hexdigest()
    return Dataset(split.inputs, ("",) * len(split), digest, rule=split.rule)


def _given_of(prediction: Prediction) -> GivenAdapter:
    """Return a prediction as what answers; a bank's factors have its layout and scaling."""
    record: BankRecord = prediction.bank
    assert record.layout is not None, "a bank with adapters has a layout"
    assert record.scaling is not None, "a bank with adapters has a scaling"
    (name, _, distance), *_ = prediction.sources()
    left_out = f", {', '.join(prediction.left_out)} left out" if prediction.left_out else ""
    about = f"the mean of {len(prediction.sources())} adapters of the bank{left_out}"
    if prediction.options.how.single_source:
        about = f"{name}, of distance {distance:.3g} ({prediction.metric}){left_out}"
    layout = AdapterLayout.from_json(record.layout)
    return GivenAdapter(
        prediction.options.approach, record.base_model, layout, prediction.vector, record.scaling, about
    )


def _assessed(asked: Asked, name: str, texts: tuple[str, ...], compared: Sequence[str]) -> Assessed:
    adapter = asked.adapters[name]
    pairs = list(zip(texts, asked.split.references, strict=True))
    about = "no adapter" if adapter is None else adapter.about
    if adapter is not None and name not in compared:
        about = published(about)
    return Assessed(
        name,
        BASE if adapter is None else COMPARED if name in compared else ADAPTER,
        about,
        asked.hash_of(name),
        texts,
        tuple(rouge_l(text, references) for text, references in pairs),
        tuple(int(exact_match(text, references)) for text, references in pairs),
    )


def _assessment(
    test: str,
    asked: Asked,
    systems: Sequence[Assessed],
    options: AssessmentOptions,
    given: Sequence[GivenAdapter],
    notes: Sequence[str],
) -> Assessment:
    split = asked.split
    model = given[0].base_model if options.model is None else str(options.model)
    return Assessment(
        test,
        split.sha256,
        split.inputs,
        split.references,
        tuple(systems),
        {
            "model": published(model),
            "dtype": options.machine.dtype,
            "max_examples": options.max_examples,
            "margin": MARGIN,
            "decoding": "greedy",
            "resamples": options.resamples,
            "seed": options.seed,
        },
        tuple(notes),
    )
