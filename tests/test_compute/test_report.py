"""What a report shows: pictures, order, figures gathered from a bank, and the page itself."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError, ParameterError, printable
from bankdb.records import RunRecord
from compute.approaches.by_distance import coefficients
from compute.approaches.options import PredictionOptions
from compute.evaluation.bootstrap import Interval
from compute.evaluation.systems import OWN, System, system_of
from compute.prediction.coefficients import coefficients as bank_coefficients
from compute.reporting.gather import bank_sizes, gather, recommended, stage_times
from compute.reporting.ordering import clustered_order, runs_of_equal
from compute.reporting.page.images import FLOOR, encode_coefficients, encode_distances
from compute.reporting.page.page import render
from compute.reporting.page.payload import cut, json_in_html, payload
from compute.reporting.page.words import duration, headline, interval, system_words
from compute.reporting.records import ADAPTER, GROUP, Report
from tests.support.banks.small_report import HOSTILE, NAMES, larger, small_report
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic

WAYS = [
    PredictionOptions(metric=metric, approach=approach)
    for approach in ("attentional", "normalized")
    for metric in ("jensen-shannon", "wasserstein")
] + [PredictionOptions(approach="uniform"), PredictionOptions(approach="oracle")]


# -- order ---------------------------------------------------------------------------------------------


def points_of(seed: int, number: int) -> NDArray[np.float64]:
    points = np.random.default_rng(seed).normal(size=(number, 2))
    return np.linalg.norm(points[:, None] - points[None, :], axis=-1)


def leaf_orders(tree: NDArray[np.float64], node: int, number: int) -> list[list[int]]:
    """Every order of leaves that a tree allows: each inner node may be turned."""
    if node < number:
        return [[node]]
    left, right = (leaf_orders(tree, int(child), number) for child in tree[node - number, :2])
    return [pair for a in left for b in right for pair in (a + b, b + a)]


@pytest.mark.parametrize("seed", range(6))
def test_order_is_one_that_the_tree_allows_and_no_longer_than_its_own(seed: int) -> None:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distances = points_of(seed, 7)
    tree = linkage(squareform(distances, checks=False), "average")

    def length(order: Any) -> float:
        return float(sum(distances[i, j] for i, j in itertools.pairwise(order)))

    found = clustered_order(distances).tolist()
    assert found in leaf_orders(tree, 12, 7)
    assert length(found) <= length(leaves_list(tree)) + 1e-12


def test_order_puts_clusters_together() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 30)
    distances = np.where(labels[:, None] == labels[None, :], 0.1, 1.0)
    np.fill_diagonal(distances, 0.0)
    assert len(runs_of_equal(labels[clustered_order(distances)].tolist())) == 4


def test_order_counts_both_directions_of_an_asymmetric_distance() -> None:
    distances = points_of(1, 6)
    skewed = np.triu(distances) * 2  # all of it in one direction
    np.testing.assert_array_equal(clustered_order(skewed), clustered_order(distances))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_order_of_few(number: int) -> None:
    assert clustered_order(np.zeros((number, number))).tolist() == list(range(number))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_order_refuses_what_is_no_distance(bad: float) -> None:
    distances = points_of(0, 4)
    distances[1, 2] = bad
    with pytest.raises(ComputeError, match="finite numbers"):
        clustered_order(distances)


def test_runs_of_equal_labels() -> None:
    assert runs_of_equal(list("aabccca")) == [(0, 2), (3, 6)]
    assert runs_of_equal([]) == []


# -- pictures ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31), st.floats(0.1, 30))
def test_coefficients_come_back_from_their_codes(number: int, seed: int, temperature: float) -> None:
    distances = np.random.default_rng(seed).uniform(0, temperature, (number, number))
    values = coefficients(distances, np.eye(number, dtype=np.bool_), "attentional")
    found = encode_coefficients(values)
    shown = values >= FLOOR * values.max()
    np.testing.assert_allclose(found.decode()[shown], values[shown], rtol=2e-4)
    assert (found.codes == 0).tolist() == (values == 0).tolist()
    assert found.cut == bool((values[values > 0] < FLOOR * values.max()).any())


def test_large_matrices_take_a_byte_an_entry() -> None:
    values = coefficients(
        np.random.default_rng(0).uniform(0, 3, (300, 300)), np.eye(300, dtype=np.bool_), "normalized"
    )
    found = encode_coefficients(values)
    assert found.codes.dtype == np.uint8
    np.testing.assert_allclose(found.decode(), values, rtol=0.03)


def test_distances_come_back_from_their_codes() -> None:
    values = points_of(3, 12)
    found = encode_distances(values)
    others = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(found.decode()[others], values[others], atol=1e-4 * values.max())
    assert (found.codes.diagonal() == 0).all()
    assert (found.codes[others] > 0).all()


def test_equal_entries_have_one_code() -> None:
    values = np.full((4, 4), 1 / 3) - np.eye(4) / 3
    found = encode_coefficients(values)
    assert set(np.unique(found.codes)) == {0, found.last}
    np.testing.assert_allclose(found.decode(), values)


# -- gathered from a bank ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Any) -> SyntheticBank:
    made = create_synthetic(tmp_path_factory.mktemp("report") / "bank", tokenizer_folder)
    made.add_many(range(9))
    for index, record in enumerate(made.bank.adapters()):
        made.bank.catalog.set_group(record.name, f"group{index // 3}" if index < 6 else None, None)
    return made


@pytest.fixture(scope="module")
def gathered(grouped: SyntheticBank) -> Report:
    return gather(grouped.bank, WAYS)


def test_coefficients_are_those_of_the_bank(grouped: SyntheticBank, gathered: Report) -> None:
    assert [matrix.system for matrix in gathered.coefficients] == [system_of(options) for options in WAYS]
    for options, matrix in zip(WAYS, gathered.coefficients, strict=True):
        np.testing.assert_array_equal(matrix.values, bank_coefficients(grouped.bank, options).values)


def brute_errors(theta: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(values @ theta - theta, axis=1) / np.linalg.norm(theta, axis=1)


def test_weight_space_errors_are_those_of_the_predicted_adapters(
    grouped: SyntheticBank, gathered: Report
) -> None:
    plain = [row for row in gathered.weight_space if row.system.leave_out == ADAPTER]
    uniform = brute_errors(grouped.theta, (1 - np.eye(9)) / 8)
    for row, matrix in zip(plain, gathered.coefficients, strict=True):
        errors = brute_errors(grouped.theta, matrix.values)
        assert row.system == matrix.system
        assert row.relative_error == pytest.approx(errors.mean(), rel=1e-5)
        if row.to_uniform is None:
            assert row.system.approach == "uniform"
        else:
            assert row.to_uniform.estimate == pytest.approx((errors - uniform).mean(), abs=1e-6)
            assert row.to_uniform.low <= row.to_uniform.estimate <= row.to_uniform.high


def test_groups_are_left_out_together(grouped: SyntheticBank, gathered: Report) -> None:
    (row,) = (
        r for r in gathered.weight_space if (r.system.leave_out, r.system.approach) == (GROUP, "uniform")
    )
    units = np.array([0, 0, 0, 1, 1, 1, 2, 3, 4])
    allowed = units[:, None] != units[None, :]
    errors = brute_errors(grouped.theta, allowed / allowed.sum(axis=1, keepdims=True))
    assert row.relative_error == pytest.approx(errors.mean(), rel=1e-5)


def test_without_groups_there_is_no_grouped_figure(bank: AdapterBank) -> None:
    found = gather(bank, [PredictionOptions(), PredictionOptions(approach="uniform")])
    assert {row.system.leave_out for row in found.weight_space} == {ADAPTER}
    assert len(found.adapters) == 6


def test_a_size_curve_ends_with_the_whole_bank(gathered: Report) -> None:
    whole = {
        row.system: row.relative_error for row in gathered.weight_space if row.system.leave_out == ADAPTER
    }
    expected = [system_of(PredictionOptions(approach=name)) for name in ("uniform", "oracle")]
    assert {curve.system for curve in gathered.sizes} >= {*expected, gathered.recommended}
    for curve in gathered.sizes:
        assert curve.sizes[-1] == 9
        assert curve.mean[-1] == pytest.approx(whole[curve.system], rel=1e-6)
        assert curve.relative[:, -1].min() == pytest.approx(curve.relative[:, -1].max())


def test_bank_sizes() -> None:
    assert bank_sizes(36) == [4, 8, 16, 32, 36]
    assert bank_sizes(8) == [4, 8]
    assert bank_sizes(3) == [3]


def test_the_order_is_of_jensen_shannon_distances(gathered: Report) -> None:
    (distances,) = (m.values for m in gathered.distances if m.metric == "jensen-shannon")
    assert gathered.ordered_by == "jensen-shannon"
    np.testing.assert_array_equal(gathered.order, clustered_order(distances))


def test_a_report_of_nothing_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(ParameterError, match="--approach"):
        gather(bank, [])


def test_the_evaluation_decides_what_is_recommended() -> None:
    report = small_report()
    assert recommended(report.weight_space, ()) == system_of(PredictionOptions(approach="attentional"))
    assert recommended(report.weight_space, report.evaluations) == system_of(
        PredictionOptions(approach="uniform")
    )


def run(kind: str, created: int, finished: int | None, **parameters: str) -> RunRecord:
    def stamp(seconds: int) -> str:
        return f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}Z"

    state = "open" if finished is None else "done"
    end = None if finished is None else stamp(finished)
    return RunRecord(1, kind, "", json.dumps(parameters), "{}", None, state, stamp(created), end)


def test_run_times_count_no_second_twice() -> None:
    runs = [
        run("predictions", 10, 30, metric="mmd"),
        run("predictions", 12, 25, metric="wasserstein"),  # within the first
        run("predictions", 100, 105, metric="mmd"),
        run("distances", 0, 7, metric="mmd"),
        run("distances", 40, None, metric="wasserstein"),
    ]
    found = {item.stage: (item.runs, item.seconds) for item in stage_times(runs)}
    assert found == {"predictions": (3, 25), "distances mmd": (1, 7)}


# -- words and data ------------------------------------------------------------------------------------


def test_ways_in_words() -> None:
    assert system_words(System("any", "normalized", "jensen-shannon")) == "Jensen-Shannon, normalized"
    assert system_words(OWN.system) == "own adapter"
    assert system_words(system_of(PredictionOptions(top_k=3))) == "Jensen-Shannon, normalized, top-k 3"
    assert system_of(PredictionOptions(approach="uniform", leave_out="group")).key == "uniform"


def test_numbers_in_words() -> None:
    assert interval(Interval(-0.07, -0.1, -0.04)) == "−0.070 [−0.100, −0.040]"
    assert interval(Interval(0.0002, -0.0001, 0.0005)) == "+0.0002 [−0.0001, +0.0005]"
    assert interval(None) == "–"
    assert [duration(s) for s in (0, 5, 119, 180, 9000)] == ["under 1 s", "5 s", "119 s", "3.0 min", "2.5 h"]


def test_headline_without_an_evaluation_says_so() -> None:
    title, sentences = headline(small_report(evaluated=False))
    assert title == "Nearest in weights: Jensen-Shannon, attentional"
    assert "not quality" in sentences[0]
    assert any("group" in sentence for sentence in sentences)


def test_headline_with_an_evaluation_has_intervals_and_the_papers_share() -> None:
    title, sentences = headline(small_report(names=[f"task {row}" for row in range(12)]))
    text = " ".join(sentences)
    assert title == "Best by generated answers: uniform"
    assert "59%" in text
    assert re.search(r"base model: \+0\.\d+ \[", text)
    assert "group of a target left out" in text


def test_of_few_targets_no_interval_is_told_and_nothing_is_beyond_chance() -> None:
    for names in (NAMES, NAMES[:3]):
        text = " ".join(headline(small_report(names=names))[1])
        assert re.search(r"base model: \+0\.\d+\.", text)
        assert "too few targets to tell it from chance: below 10 there is no interval" in text
        assert "beyond chance" not in text
        assert "[" not in text


def test_the_largest_sources_of_each_target() -> None:
    report = small_report()
    data = payload(report, {}, list(report.coefficients))
    assert data["names"] == list(NAMES)
    for matrix, way in zip(report.coefficients, data["ways"], strict=True):
        sources, weights = (
            np.frombuffer(base64.b64decode(way[key]), kind).reshape(len(NAMES), data["top"])
            for key, kind in (("sources", "<i4"), ("weights", "<f4"))
        )
        np.testing.assert_allclose(np.take_along_axis(matrix.values, sources, 1), weights, rtol=1e-6)
        np.testing.assert_allclose(weights[:, 0], matrix.values.max(axis=1), rtol=1e-6)
    assert len(set(data["labels"])) == len(NAMES)


def test_equal_answers_are_shown_once() -> None:
    report = small_report()
    (sample,) = payload(report, {}, list(report.coefficients))["samples"][0]
    systems = {text: lines for text, _, lines in sample["answers"]}
    assert systems[cut(HOSTILE, 500)] == ["own adapter"]
    assert systems["yes"][0] == "base model"
    assert systems["yes"][1].startswith("target left out: Jensen-Shannon, attentional; ")
    assert [right for _, right, _ in sample["answers"]] == [True, False]


def test_long_texts_keep_both_ends() -> None:
    assert cut("a" * 20, 20) == "a" * 20
    shortened = cut("begin" + "x" * 5000 + "end", 200)
    assert len(shortened) < 240
    assert shortened.startswith("begin")
    assert shortened.endswith("end")


def shown(value: Any) -> Any:
    """What a page is given: texts without what would steer it."""
    if isinstance(value, str):
        return printable(value, keep="\n\t")
    if isinstance(value, dict):
        return {shown(key): shown(item) for key, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, list) else value


@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_json_in_html_is_the_same_json_and_ends_no_element(value: Any) -> None:
    text = json_in_html(value)
    assert json.loads(text) == shown(value)
    assert not set(text) & set("<>&\u2028\u2029")


# -- the page ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page's elements are, scripts and styles left aside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return render(small_report(), title="A <title>", command="bank report --out r.html")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_equal_reports_give_equal_pages(html: str) -> None:
    assert render(small_report(), title="A <title>", command="bank report --out r.html") == html


def test_nothing_is_loaded_from_elsewhere(html: str, page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name) or ""
            assert not re.match(r"\s*(https?:)?//", value), (tag, value)
    assert not page.all("link")
    assert not page.all("img")
    assert "@import" not in html
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)
    assert "http" not in str(policy)


def test_texts_make_no_elements(html: str, page: Page) -> None:
    assert len(page.all("script")) == 4  # data, figures, Bokeh, the page's own
    assert "window.broken = true</script>" not in html
    assert "<title>A &lt;title&gt;</title>" in html


def test_the_page_is_accessible(page: Page) -> None:
    identities = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identities) == len(set(identities))
    assert all(label["for"] in identities for label in page.all("label") if "for" in label)
    assert all(a["href"] == "#main" or str(a["href"])[1:] in identities for a in page.all("a"))
    assert all(a.get("aria-label") for _, a in page.elements if a.get("role") in ("img", "region"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))


def test_sections_are_in_order(page: Page) -> None:
    assert [s["id"] for s in page.all("section")] == [
        "bank", "finding", "tables", "matrices", "targets", "sizes", "times", "made",
    ]  # fmt: skip


def test_figures_have_places(html: str, page: Page) -> None:
    found = re.search(r'id="report-figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    figures = json.loads(found[1])
    places = set(figures["roots"].values())
    assert places <= {a.get("id") for _, a in page.elements}
    assert {"focus", "bars"} < places
    assert set(figures["roots"]) == {root["id"] for root in figures["document"]["roots"]}


def test_tables_one_and_three_of_the_paper_are_there(html: str) -> None:
    assert "<caption>Rouge-L, mean ± standard deviation over targets</caption>" in html
    assert "<caption>Exact match, mean ± standard deviation over targets</caption>" in html
    assert "without stripping" in html


def test_a_report_without_extras_says_what_is_missing() -> None:
    bare = dataclasses.replace(small_report(evaluated=False), sizes=(), stages=())
    text = render(bare)
    assert "no evaluation by generation is in this report" in text
    assert "too small to draw smaller ones" in text
    assert "The bank has no record of finished runs" in text


def test_a_large_report_stays_small() -> None:
    report = larger(small_report(), 502)
    assert len(render(report).encode()) < 4_000_000
