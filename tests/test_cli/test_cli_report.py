"""`bank report` through its runner, and the page in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from cli.main import cli
from compute.evaluation.records import Evaluation, store_evaluation
from compute.evaluation.scores import Outcome, Sample, Target
from compute.evaluation.systems import System
from compute.reporting.evaluations import reported
from compute.reporting.page.page import render
from tests.support.banks.small_report import NAMES, larger, small_report
from tests.support.servers.report_browser import (
    chromium,
    complaints,
    open_report,
    program,
    requests,
    wait_until,
)

# -- the command ---------------------------------------------------------------------------------------


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["report", *(str(argument) for argument in arguments)])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def bank_path(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    path = tmp_path_factory.mktemp("cli-report") / "bank"
    shutil.copytree(bank_template, path)
    return path


def evaluation_of(bank: AdapterBank, identity: str = "e1") -> Evaluation:
    """An evaluation of three targets by hand: mean Rouge-L 0.2, 0.8 and 0.5 of base, own and uniform."""
    names = [record.name for record in bank.adapters()][:3]
    systems = (
        System("base", "base"),
        System("own", "own", space="factors"),
        System("uniform", "uniform", None, "adapter", "factors"),
        System(
            "jensen-shannon normalized", "normalized", "jensen-shannon", "adapter", "factors", {"top_k": 2}
        ),
    )
    means = {"base": 0.2, "own": 0.8, "uniform": 0.5, "jensen-shannon normalized": 0.65}
    outcomes = [
        Outcome(
            system.name, name, 1, means[system.name] + shift, 1.0, 0.0, (means[system.name] + shift,), (1,), (0,),
            (Sample(f"Q {name}?", ("yes", "aye"), system.name),), (), None, "0", 1.0,
        )
        for name, shift in zip(names, (-0.1, 0.0, 0.1), strict=True)
        for system in systems
    ]  # fmt: skip
    return Evaluation(
        identity=identity,
        created="2026-01-02T03:04:05Z",
        settings={"model": "m", "seed": 0, "resamples": 200},
        bank={"identity": bank.record.identity},
        systems=systems,
        targets=tuple(Target(name, None, 1, 8, "0") for name in names),
        outcomes=tuple(outcomes),
        failures=(),
        seconds=12.0,
    )


def test_a_report_is_written(bank_path: Path, tmp_path: Path) -> None:
    result = run("--bank", bank_path, "--out", tmp_path / "r.html", "--title", "Mine & yours")
    assert "6 adapters" in result.stdout
    text = (tmp_path / "r.html").read_text()
    assert "<title>Mine &amp; yours</title>" in text
    assert (
        "Command: <code>bank report --bank bank --out r.html --title &#39;Mine &amp; yours&#39;</code>"
        in text
    )
    assert "tuned" in text
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_the_same_report_again_is_the_same_file(bank_path: Path, tmp_path: Path) -> None:
    arguments = (
        "--bank",
        bank_path,
        "--metric",
        "js",
        "--approach",
        "normalized",
        "--out",
        tmp_path / "r.html",
    )
    run(*arguments)
    first = (tmp_path / "r.html").read_bytes()
    run(*arguments, "--overwrite")
    again = (tmp_path / "r.html").read_bytes()
    assert again.replace(b" --overwrite", b"") == first


def test_a_file_that_is_there_stays(bank_path: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("mine")
    result = run("--bank", bank_path, "--out", tmp_path / "r.html", status=1)
    assert "--overwrite" in result.stderr
    assert (tmp_path / "r.html").read_text() == "mine"


def test_metrics_and_approaches_can_be_chosen(bank_path: Path, tmp_path: Path) -> None:
    run("--bank", bank_path, "--metric", "mmd", "--approach", "attentional", "--out", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert 'value="mmd/attentional"' in text
    assert "jensen-shannon/" not in text


def test_an_empty_bank_is_refused(empty_bank: AdapterBank, tmp_path: Path) -> None:
    result = run("--bank", empty_bank.path, "--out", tmp_path / "r.html", status=1)
    assert "bank ingest" in result.stderr
    assert not (tmp_path / "r.html").exists()


def test_the_newest_evaluation_of_the_bank_is_shown(bank: AdapterBank, tmp_path: Path) -> None:
    store_evaluation(bank, evaluation_of(bank))
    run("--bank", bank.path, "--approach", "normalized", "--out", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "Best by generated answers: Jensen-Shannon, normalized, top-k 2" in text
    assert "closes 75% of the gap" in text  # of three targets no interval is told


def test_an_evaluation_can_be_a_file(bank: AdapterBank, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(evaluation_of(bank, "elsewhere").to_json())
    common = ("--bank", bank.path, "--approach", "normalized", "--out", tmp_path / "r.html")
    run(*common, "--evaluation", tmp_path / "e.json")
    assert "evaluation elsewhere" in (tmp_path / "r.html").read_text()
    assert "no such evaluation" in run(*common, "--overwrite", "--evaluation", "e9", status=1).stderr
    assert "no such file" in run(*common, "--overwrite", "--evaluation", tmp_path / "x.json", status=1).stderr


def test_an_evaluation_of_another_bank_is_refused(bank: AdapterBank, tmp_path: Path) -> None:
    other = dataclasses.replace(evaluation_of(bank), bank={"identity": "another"})
    (tmp_path / "e.json").write_text(other.to_json())
    result = run(
        "--bank", bank.path, "--out", tmp_path / "r.html", "--evaluation", tmp_path / "e.json", status=2
    )
    assert "of bank another" in result.stderr


def test_scores_of_an_evaluation(bank: AdapterBank) -> None:
    found = reported(evaluation_of(bank))
    scores = {item.system.approach: item for item in found.summaries}
    assert scores["own"].rouge.mean == pytest.approx(0.8)
    assert scores["own"].rouge.deviation == pytest.approx(np.std([-0.1, 0, 0.1], ddof=1))
    normalized = scores["normalized"]
    assert normalized.system.detail == "top-k 2"
    assert normalized.rouge_to_base is not None
    assert normalized.rouge_to_base.estimate == pytest.approx(0.45)
    assert normalized.rouge_to_uniform is not None
    assert normalized.rouge_to_uniform.estimate == pytest.approx(0.15)
    assert normalized.gap_share is not None
    assert normalized.gap_share.estimate == pytest.approx(0.75)
    assert scores["base"].gap_share is None
    assert scores["uniform"].rouge_to_uniform is None
    assert [outcome.samples[0].answer for outcome in found.evaluation.outcomes][::4] == ["base"] * 3


# -- in a browser --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report with a space.html"
    path.write_text(render(small_report()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def driver(started: Any) -> Iterator[Any]:
    """A browser that, whatever a test opens in it, must not complain and must ask for nothing."""
    yield started
    assert complaints(started) == []
    assert requests(started) == []


@pytest.fixture
def browser(driver: Any, page: Path) -> Any:
    open_report(driver, page)
    return driver


def by_id(driver: Any, name: str) -> Any:
    return driver.find_element("id", name)


def select(driver: Any, name: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(by_id(driver, name)).select_by_visible_text(text)


def names_in(driver: Any, table: str) -> list[str]:
    cells = driver.find_elements("css selector", f"{table} tbody tr:not([hidden]) th")
    return [cell.text for cell in cells]


def pixels(driver: Any, place: str) -> Any:
    """What is drawn in the figure at a place of the page; shape (height, width, 3)."""
    from PIL import Image

    script = """
    const found = []
    const visit = (root) => root.querySelectorAll('*').forEach((element) => {
      if (element.tagName === 'CANVAS') found.push(element)
      if (element.shadowRoot) visit(element.shadowRoot)
    })
    visit(document.getElementById(arguments[0]))
    return found.sort((a, b) => b.width * b.height - a.width * a.height)[0].toDataURL()
    """
    data = driver.execute_script(script, place).partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def ranges(driver: Any, name: str) -> tuple[float, float, float, float]:
    """Ends of the axes of a figure: what of its matrix it shows."""
    script = (
        "const plot = Bokeh.documents[0].get_model_by_name(arguments[0]);"
        "return [plot.x_range.start, plot.x_range.end, plot.y_range.start, plot.y_range.end]"
    )
    found = driver.execute_script(script, f"plot:{name}")
    return tuple(map(float, found))  # type: ignore[return-value]


def cell_place(driver: Any, column: float, row: float) -> tuple[int, int]:
    """Where a cell of the large picture is, from the middle of its place on the page."""
    script = """
    const view = Bokeh.index.find_one_by_id(arguments[0])
    return [view.frame.x_scale.compute(arguments[1]), view.frame.y_scale.compute(arguments[2]),
            view.el.getBoundingClientRect().width, view.el.getBoundingClientRect().height]
    """
    root = driver.execute_script("return Bokeh.documents[0].get_model_by_name('plot:focus').id")
    x, y, width, height = driver.execute_script(script, root, column, row)
    return round(x - width / 2), round(y - height / 2)


def point_at(driver: Any, column: float, row: float) -> str:
    """Point at a cell of the large picture; return the text of the tooltip."""
    from selenium.webdriver import ActionChains

    focus = by_id(driver, "focus")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", focus)
    ActionChains(driver).move_to_element_with_offset(focus, *cell_place(driver, column, row)).perform()
    script = """
    const texts = []
    const visit = (root) => root.querySelectorAll('*').forEach((element) => {
      if (element.classList.contains('bk-tooltip-row-value')) texts.push(element.textContent)
      if (element.shadowRoot) visit(element.shadowRoot)
    })
    visit(document)
    return texts.join(' | ')
    """
    return str(wait_until(lambda: driver.execute_script(script), "a tooltip"))


@pytest.mark.browser
def test_a_cell_tells_its_names_and_number(browser: Any) -> None:
    report = small_report()
    (values,) = (m.values for m in report.coefficients if m.key == report.recommended.key)
    for place in ((1, 5), (7, 2)):
        source, target = (int(report.order[i]) for i in place)
        expected = [NAMES[target], NAMES[source], f"{values[target, source]:.3g}"]
        wait_until(
            lambda place=place, expected=expected: (
                [part.strip() for part in point_at(browser, place[0] + 0.5, place[1] + 0.5).split("|")]
                == expected
            ),
            f"a tooltip with {expected}",
        )
    assert browser.execute_script("return window.broken") is None


@pytest.mark.browser
def test_dragging_a_box_zooms_all_pictures_and_a_button_shows_all_again(browser: Any) -> None:
    from selenium.webdriver import ActionChains

    whole = ranges(browser, "focus")
    assert whole == (0, 9, 9, 0)
    before = pixels(browser, "focus")
    point_at(browser, 2.5, 2.5)
    start, end = cell_place(browser, 2.0, 2.0), cell_place(browser, 6.0, 6.0)
    focus = by_id(browser, "focus")
    ActionChains(browser).move_to_element_with_offset(
        focus, *start
    ).click_and_hold().move_to_element_with_offset(focus, *end).release().perform()
    wait_until(lambda: ranges(browser, "focus") != whole, "zoomed")
    zoomed = ranges(browser, "focus")
    assert 0.5 < zoomed[0] < 3.0 < 5.0 < zoomed[1] < 7.5
    assert zoomed[2] > zoomed[3]  # the first row stays on top
    assert ranges(browser, "jensen-shannon/attentional") == zoomed
    assert (pixels(browser, "focus") != before).any()
    by_id(browser, "unzoom").click()
    wait_until(lambda: ranges(browser, "focus") == whole, "shown whole")


@pytest.mark.browser
def test_a_small_picture_becomes_the_large_one(browser: Any) -> None:
    before = point_at(browser, 3.5, 2.5)
    browser.find_element("css selector", "button[data-matrix='jensen-shannon/distance']").click()
    wait_until(lambda: "distance" in by_id(browser, "legend-title").text, "chosen")
    report = small_report()
    source, target = int(report.order[3]), int(report.order[2])
    distance = f"{report.distances[0].values[target, source]:.3g}"
    assert before.split()[-1] != distance
    wait_until(lambda: point_at(browser, 3.5, 2.5).split()[-1] == distance, "the distance")
    # A click on a picture itself does the same.
    browser.find_element("css selector", "[id^=picture-0]").click()
    wait_until(
        lambda: by_id(browser, "matrix").get_attribute("value") == "jensen-shannon/attentional", "chosen"
    )


@pytest.mark.browser
def test_one_colour_scale_changes_the_colours(browser: Any) -> None:
    before = pixels(browser, "picture-0")
    by_id(browser, "one-scale").click()
    wait_until(lambda: (pixels(browser, "picture-0") != before).any(), "recoloured")


@pytest.mark.browser
def test_another_target_has_other_sources_scores_and_answers(browser: Any) -> None:
    report = small_report()
    (values,) = (m.values for m in report.coefficients if m.key == report.recommended.key)
    seen = set()
    for target in (0, 3, 5):
        select(browser, "target", NAMES[target])
        found = names_in(browser, "#sources")
        assert found[0] == NAMES[int(np.argmax(values[target]))]
        assert by_id(browser, "target-name").text == NAMES[target]
        assert "own adapter" in names_in(browser, "#scores")
        answers = by_id(browser, "samples").text
        assert NAMES[target] in answers
        assert "window.broken = true" in answers  # as text
        drawn = browser.execute_script("return Bokeh.documents[0].get_model_by_name('bar_names').factors")
        assert len(drawn) == len(found)
        seen.add(tuple(found))
    assert len(seen) == 3
    assert browser.execute_script("return window.broken") is None
    select(browser, "way", "Jensen-Shannon, nearest")
    assert len(names_in(browser, "#sources")) == 1
    by_id(browser, "next").click()
    assert by_id(browser, "target-name").text != NAMES[5]


@pytest.mark.browser
def test_the_table_of_adapters_sorts_and_filters(browser: Any) -> None:
    heads = browser.find_elements("css selector", "#adapters thead button")
    tokens = next(head for head in heads if head.text.startswith("tokens"))
    tokens.click()
    assert names_in(browser, "#adapters") == list(NAMES)
    tokens.click()
    assert names_in(browser, "#adapters") == list(NAMES[::-1])
    by_id(browser, "filter").send_keys("A-Name")
    assert names_in(browser, "#adapters") == [NAMES[8], NAMES[7]]
    assert by_id(browser, "filter-count").text == "2 of 9"


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (900, True), (1600, False)])
def test_it_fits_and_is_legible(driver: Any, page: Path, width: int, dark: bool) -> None:
    from PIL import Image

    open_report(driver, page, width, dark=dark)
    wide, inner = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {})
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("L"))
    paper = int(picture[2, 2])
    assert paper < 60 if dark else paper > 240
    ink = np.abs(picture.astype(int) - paper) > 100
    assert 0.005 < ink.mean() < 0.6  # neither blank nor full
    focus = pixels(driver, "focus")
    assert len(np.unique(focus.reshape(-1, 3), axis=0)) > 20


@pytest.mark.browser
def test_it_prints(browser: Any) -> None:
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


@pytest.mark.browser
def test_a_large_report_opens(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    path.write_text(render(larger(small_report(), 502)), encoding="utf-8")
    open_report(driver, path)
    assert point_at(driver, 250.5, 100.5).count("task") == 2


def test_a_missing_browser_is_a_failure_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssertionError, match="apt-get install chromium"):
        program("chromium")
