"""What learning curves say, against the plain way to compute it, and their file."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.errors import BankFormatError
from compute.curves.records import CurveStart, LearningCurves, Scores
from compute.curves.runs import TrainingRun
from compute.curves.summary import advantages, points, points_csv, steps_to_reach, targets_csv
from compute.reporting.page.page import render
from tests.support.banks.small_report import small_report

STEPS = (0, 2, 4, 8)
TASKS = 12


def drawn_curves(seed: int = 0, tasks: int = TASKS) -> LearningCurves:
    generator = np.random.default_rng(seed)

    def scores() -> Scores:
        return Scores(tuple(generator.random(tasks).tolist()), tuple(generator.random(tasks).tolist()))

    def start(name: str, leave_out: str | None) -> CurveStart:
        losses = generator.random((len(STEPS), tasks)).tolist()
        return CurveStart(
            name,
            leave_out,
            tuple(scores() for _ in STEPS),
            tuple(map(tuple, losses)),
            tuple(generator.random(tasks).tolist()),
        )

    return LearningCurves(
        "0123456789abcdef",
        "2026-01-01T00:00:00Z",
        {"resamples": 200, "seed": 3, "batch_size": 8, "examples": 32},
        "bank",
        tuple(f"task{number}" for number in range(tasks)),
        tuple(f"group{number % 3}" for number in range(tasks)),
        STEPS,
        Scores((0.0,) * tasks, (0.0,) * tasks),
        Scores((1.0,) * tasks, (1.0,) * tasks),
        (start("predicted", "adapter"), start("predicted (group left out)", "group"), start("zero", None)),
        {},
    )


def test_points_are_means_over_the_tasks() -> None:
    curves = drawn_curves()
    found = points(curves)
    assert [(one.start, one.steps) for one in found] == [
        (start.name, step) for start in curves.starts for step in STEPS
    ]
    for one in found:
        start = next(start for start in curves.starts if start.name == one.start)
        place = STEPS.index(one.steps)
        rouge = start.scores[place].rouge
        assert one.rouge == pytest.approx(sum(rouge) / TASKS)
        # Base model at 0 and own adapters at 1: the share that is closed is the mean itself.
        assert one.gap is not None
        assert one.gap.estimate == pytest.approx(one.rouge)
        kept = []
        for task in range(TASKS):
            losses = [start.held_out[at][task] for at in range(place + 1)]
            kept.append(start.scores[int(np.argmin(losses))].rouge[task])
        assert one.kept == pytest.approx(sum(kept) / TASKS)
        if one.start == "zero":
            assert one.to_zero is None
        else:
            zero = curves.starts[-1].scores[place].rouge
            differences = [mine - other for mine, other in zip(rouge, zero, strict=True)]
            assert one.to_zero is not None
            assert one.to_zero.estimate == pytest.approx(sum(differences) / TASKS)
            # Three groups are too few for an interval.
            assert one.to_zero.has_bounds == (start.leave_out == "adapter")


def test_the_advantage_is_over_the_steps_between() -> None:
    curves = drawn_curves(1)
    found = {one.start: one for one in advantages(curves)}
    assert set(found) == {"predicted", "predicted (group left out)"}
    mine, zero = curves.starts[0], curves.starts[-1]
    differences = [np.mean(mine.scores[place].rouge) - np.mean(zero.scores[place].rouge) for place in (1, 2)]
    assert found["predicted"].mean.estimate == pytest.approx(np.mean(differences))
    assert advantages(replace(curves, starts=curves.starts[:2])) == []


@given(
    st.lists(st.integers(0, 50).map(lambda n: n / 50), min_size=2, max_size=6),
    st.integers(0, 50).map(lambda n: n / 50),
)
def test_steps_to_reach_is_the_first_crossing(means: list[float], score: float) -> None:
    steps = [2**number for number in range(len(means))]
    found = steps_to_reach(steps, np.asarray(means), score)
    fine = np.union1d(np.linspace(steps[0], steps[-1], 20_001), steps)
    reached = np.flatnonzero(np.interp(fine, steps, means) >= score - 1e-12)
    if found is None:
        assert max(means) < score
    else:
        assert fine[reached[0]] == pytest.approx(found, abs=(steps[-1] - steps[0]) / 10_000)


def test_the_report_shows_them_where_there_are_any() -> None:
    report = small_report()
    without, page = render(report), render(replace(report, curves=drawn_curves()))
    heading = "What training steps are worth"
    assert heading not in without
    assert page.count(heading) == 2  # in the contents and above the section
    assert 'id="step-plot"' in page
    assert "steps of 8 of 32 labelled examples of each of 12 tasks" in page


def test_what_is_kept_is_the_lowest_held_out_loss_and_the_fewest_steps() -> None:
    run = TrainingRun("key", (1.0,) * 8, {"0": 2.0, "1": 1.5, "2": 1.5, "4": 1.0, "8": 1.2}, 1.0)
    assert [run.best(steps) for steps in (0, 1, 2, 4, 8)] == [0, 1, 1, 4, 4]


def test_a_file_is_read_as_it_was_written() -> None:
    curves = drawn_curves(2)
    assert LearningCurves.from_json(curves.to_json()) == curves
    assert "12 tasks, steps 0, 2, 4, 8" in repr(curves)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["targets"].pop(),
        lambda content: content["starts"][0]["scores"].pop(),
        lambda content: content["starts"][0]["held_out"][1].pop(),
        lambda content: content["base"]["rouge"].__setitem__(0, 1.5),
        lambda content: content["own"]["exact"].__setitem__(0, "1"),
        lambda content: content["starts"][0]["seconds"].__setitem__(0, None),
        lambda content: content.pop("groups"),
        lambda content: content.update(steps=[0, 4, 2, 8]),
        lambda content: content.update(format=9),
    ],
)
def test_an_edited_file_is_an_error(edit: object) -> None:
    content = json.loads(drawn_curves().to_json())
    edit(content)  # type: ignore[operator]
    with pytest.raises(BankFormatError, match="again"):
        LearningCurves.from_json(json.dumps(content))


def test_tables_have_a_row_a_point_and_a_row_a_target() -> None:
    curves = drawn_curves()
    rows = list(csv.DictReader(io.StringIO(points_csv(points(curves)))))
    assert len(rows) == 3 * len(STEPS)
    assert all(row["gap_low"] for row in rows if row["leave_out"] == "adapter")
    assert not any(row["gap_low"] for row in rows if row["leave_out"] == "group")
    each = list(csv.DictReader(io.StringIO(targets_csv(curves))))
    assert len(each) == TASKS * (2 + 3 * len(STEPS))
    assert {row["rouge"] for row in each if row["start"] == "own"} == {"1.0"}
