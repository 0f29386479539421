"""The numbers and texts behind the page's controls, as JSON."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import printable
from cli.report.images import EncodedMatrix
from cli.report.plots import PALETTE, short
from cli.report.words import LEFT_OUT, way_words
from compute.approaches.by_distance import effective_sources
from compute.reporting.records import Matrix, Report, ReportedEvaluation, Sample, Way

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
        "ways": [_way(matrix) for matrix in ways],
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


def _way(matrix: Matrix) -> dict[str, Any]:
    """The largest coefficients of each target, and how many sources there are in effect."""
    top = min(TOP_SOURCES, len(matrix.values) - 1)
    order = np.argsort(-matrix.values, axis=1, kind="stable")[:, :top]
    return {
        "words": way_words(matrix.way),
        "sources": packed(order, "<i4"),
        "weights": packed(np.take_along_axis(matrix.values, order, axis=1), "<f4"),
        "effective": packed(effective_sources(matrix.values), "<f4"),
    }


def left_out_of(report: Report) -> list[str]:
    """What the systems with scores leave out, in the order of the columns."""
    found = {score.leave_out for evaluation in report.evaluations for score in evaluation.by_target}
    return [name for name in LEFT_OUT if name in found]


def _scores(report: Report) -> dict[int, list[tuple[str, list[float | None]]]]:
    """Rouge-L and exact match of each system on each target, a pair for each thing left out; best first."""
    index = {name: i for i, name in enumerate(report.names)}
    both = left_out_of(report)
    rows: dict[int, dict[str, list[float | None]]] = defaultdict(dict)
    for evaluation in report.evaluations:
        for score in evaluation.by_target:
            if score.target in index:
                nothing: list[float | None] = [None] * (2 * len(both))
                found = rows[index[score.target]].setdefault(way_words(score.way), nothing)
                place = 2 * both.index(score.leave_out)
                found[place : place + 2] = [round(score.rouge, 4), round(score.exact, 4)]
    return {
        target: sorted(found.items(), key=lambda item: -(item[1][0] or 0.0)) for target, found in rows.items()
    }


def _samples(report: Report) -> dict[int, list[dict[str, Any]]]:
    index = {name: i for i, name in enumerate(report.names)}
    each = max(1, min(3, _MOST_SAMPLES // max(1, len(index))))
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for evaluation in report.evaluations:
        ways = _ways_of(evaluation)
        for sample in evaluation.samples:
            target = index.get(sample.target)
            if target is not None and len(rows[target]) < each:
                rows[target].append(_sample(sample, ways))
    return dict(rows)


def _ways_of(evaluation: ReportedEvaluation) -> dict[str, Way]:
    return {score.way.key: score.way for score in evaluation.by_target}


def _sample(sample: Sample, ways: dict[str, Way]) -> dict[str, Any]:
    """Prompt, reference, and each answer with the systems that gave it."""
    right = {reference.strip() for reference in sample.references}
    systems: dict[str, dict[str, list[str]]] = {}
    for key, leave_out, text in sample.answers:
        way = ways.get(key)
        left = "" if way is None or way.approach in ("base", "own") else LEFT_OUT[leave_out]
        name = key if way is None else way_words(way)
        systems.setdefault(text, {}).setdefault(left, []).append(name)
    return {
        "prompt": cut(sample.prompt, _LONGEST_PROMPT),
        "reference": cut(" / ".join(sample.references), _LONGEST_ANSWER),
        "answers": [
            (cut(text, _LONGEST_ANSWER), text.strip() in right, [_line(*item) for item in found.items()])
            for text, found in systems.items()
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
