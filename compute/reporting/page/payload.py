"""The numbers and texts behind the page's controls, as JSON."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import printable
from compute.approaches.by_distance import effective_sources
from compute.evaluation.records import Evaluation
from compute.evaluation.scores import Outcome
from compute.evaluation.systems import System
from compute.reporting.page.images import EncodedMatrix
from compute.reporting.page.plots import PALETTE, short
from compute.reporting.page.words import LEFT_OUT, left_out, system_words
from compute.reporting.records import Matrix, Report

TOP_SOURCES = 12
_LONGEST_PROMPT = 1500
_LONGEST_ANSWER = 500
_MOST_SAMPLES = 300
"""Of all targets together; with more targets each has fewer, but at least one."""


def payload(
    report: Report, pictures: dict[str, tuple[str, EncodedMatrix]], ways: list[Matrix]
) -> dict[str, Any]:
    """Return what the page's script reads.

    Parameters
    ----------
    pictures
        Words and codes of each matrix, by key; the codes themselves are in the figures.
    ways
        The coefficients that target pages offer.
    """
    return {
        "names": report.names,
        "labels": _labels(report.names),
        "groups": [record.group or "–" for record in report.adapters],
        "palette": list(PALETTE),
        "order": packed(report.order, "<i4"),
        "matrices": {
            key: {
                "words": words,
                "low": matrix.low,
                "high": matrix.high,
                "first": matrix.first,
                "last": matrix.last,
                "logarithmic": matrix.logarithmic,
                "cut": matrix.cut,
            }
            for key, (words, matrix) in pictures.items()
        },
        "top": min(TOP_SOURCES, len(report.names) - 1),
        "ways": [_way(matrix, matrix.system) for matrix in ways if matrix.system is not None],
        "scores": _scores(report),
        "samples": _samples(report),
    }


def _labels(names: list[str]) -> list[str]:
    """Short names for an axis; two names that would be cut to the same text get a number."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        label = short(name)
        seen[label] = seen.get(label, 0) + 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return labels


def packed(values: NDArray[Any], dtype: str) -> str:
    """Return an array as base64 of its little-endian bytes."""
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode("ascii")


def _way(matrix: Matrix, system: System) -> dict[str, Any]:
    """The largest coefficients of each target, and how many sources there are in effect."""
    top = min(TOP_SOURCES, len(matrix.values) - 1)
    order = np.argsort(-matrix.values, axis=1, kind="stable")[:, :top]
    return {
        "words": system_words(system),
        "sources": packed(order, "<i4"),
        "weights": packed(np.take_along_axis(matrix.values, order, axis=1), "<f4"),
        "effective": packed(effective_sources(matrix.values), "<f4"),
    }


def left_out_of(report: Report) -> list[str]:
    """What the systems with scores leave out, in the order of the columns."""
    present = {left_out(item.system) for reported in report.evaluations for item in reported.summaries}
    return [name for name in LEFT_OUT if name in present]


def _scores(report: Report) -> dict[int, list[tuple[str, list[float | None]]]]:
    """Rouge-L and exact match of each system on each target, a pair for each thing left out; best first."""
    index = {name: i for i, name in enumerate(report.names)}
    both = left_out_of(report)
    rows: dict[int, dict[str, list[float | None]]] = defaultdict(dict)
    for reported in report.evaluations:
        systems = _systems(reported.evaluation)
        for outcome in reported.evaluation.outcomes:
            if outcome.target in index:
                system = systems[outcome.system]
                nothing: list[float | None] = [None] * (2 * len(both))
                cells = rows[index[outcome.target]].setdefault(system_words(system), nothing)
                place = 2 * both.index(left_out(system))
                cells[place : place + 2] = [round(outcome.rouge, 4), round(outcome.exact, 4)]
    return {
        target: sorted(cells.items(), key=lambda item: -(item[1][0] or 0.0)) for target, cells in rows.items()
    }


def _samples(report: Report) -> dict[int, list[dict[str, Any]]]:
    index = {name: i for i, name in enumerate(report.names)}
    each = max(1, min(3, _MOST_SAMPLES // max(1, len(index))))
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for reported in report.evaluations:
        outcomes: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in reported.evaluation.outcomes:
            outcomes[outcome.target].append(outcome)
        for name, of_target in outcomes.items():
            if name in index:
                room = each - len(rows[index[name]])
                rows[index[name]] += _samples_of(of_target, _systems(reported.evaluation))[: max(0, room)]
    return dict(rows)


def _systems(evaluation: Evaluation) -> dict[str, System]:
    return {system.name: system for system in evaluation.systems}


def _samples_of(outcomes: list[Outcome], systems: dict[str, System]) -> list[dict[str, Any]]:
    """Prompt, reference, and each answer with the systems that gave it, of the kept examples of one target."""
    places = max(len(outcome.samples) for outcome in outcomes)
    return [
        _sample([item for item in outcomes if place < len(item.samples)], place, systems)
        for place in range(places)
    ]


def _sample(outcomes: list[Outcome], place: int, systems: dict[str, System]) -> dict[str, Any]:
    example = outcomes[0].samples[place]
    right = {reference.strip() for reference in example.references}
    answers: dict[str, dict[str, list[str]]] = {}
    for outcome in outcomes:
        system = systems[outcome.system]
        left = "" if system.leave_out is None else LEFT_OUT[system.leave_out]
        answers.setdefault(outcome.samples[place].answer, {}).setdefault(left, []).append(
            system_words(system)
        )
    return {
        "prompt": cut(example.input, _LONGEST_PROMPT),
        "reference": cut(" / ".join(example.references), _LONGEST_ANSWER),
        "answers": [
            (cut(text, _LONGEST_ANSWER), text.strip() in right, [_line(*item) for item in by_left.items()])
            for text, by_left in answers.items()
        ],
    }


def _line(left: str, names: list[str]) -> str:
    return (f"{left}: " if left else "") + "; ".join(names)


def cut(text: str, longest: int) -> str:
    """Cut the middle out of a long text; both of its ends say something."""
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} characters …] {text[-half:]}"


def json_in_html(value: Any) -> str:
    """Return JSON that can stand in a script element: no text in it can end the element or begin a comment.

    Texts have what a page would obey escaped, so that they are shown as they are.
    """
    text = json.dumps(_shown(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, keep="\n\t")
    if isinstance(value, dict):
        return {key if isinstance(key, int) else _shown(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value
