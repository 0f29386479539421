"""Merge methods and negative coefficients through the commands: exit status, what is told, what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.peft.weights import load_adapter
from cli.main import cli
from compute.approaches.ridge import Ridge
from tests.support.banks.small_bank import write_dataset


@pytest.fixture
def bank(bank_template: Path, tmp_path: Path) -> Path:
    shutil.copytree(bank_template, tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "new", 40)


def run(bank: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), env={"BANK_PATH": str(bank)})


def done(bank: Path, *arguments: str | Path) -> Result:
    result = run(bank, *arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def wavering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression that fits so closely that coefficients of both signs come out."""
    monkeypatch.setattr("compute.approaches.ridge.default_grid", lambda: [Ridge(10.0, 1e-4)])


def parameters_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "provenance.json").read_text())["parameters"])


# -- merge methods -------------------------------------------------------------------------------------


def test_one_dataset_by_ties_says_so_in_its_folder(bank: Path, data: Path, tmp_path: Path) -> None:
    done(bank, "predict", data, "--out", tmp_path / "sum")
    done(bank, "predict", data, "--out", tmp_path / "ties", "--merge", "ties", "--density", "0.3")
    assert parameters_of(tmp_path / "sum") == {}
    assert parameters_of(tmp_path / "ties") == {
        "merge": "ties",
        "density": 0.3,
        "majority_sign": "total",
        "merge_weights": "convex",
    }
    text = (tmp_path / "ties" / "README.md").read_text()
    assert "made of trained adapters by the merge method `ties`, whose coefficients come from" in text
    assert "convex combination" not in text
    assert "a convex combination of trained adapters" in (tmp_path / "sum" / "README.md").read_text()
    one, other = (load_adapter(tmp_path / name).vector for name in ("sum", "ties"))
    assert (one != other).mean() > 0.5


def test_all_by_a_method_and_one_of_them_again(bank: Path, tmp_path: Path) -> None:
    merged = ("--merge", "dare-linear", "--merge-seed", "3", "--density", "0.5")
    out = tmp_path / "out"
    printed = done(bank, "predict", "--all", *merged, "--export", out, "--dtype", "float32", "--json").stdout
    (found,) = json.loads(printed)["predictions"]
    assert found["relative_error"] is None
    name = sorted(folder.name for folder in out.iterdir())[0]
    run_number = str(found["run"])
    done(bank, "export", name, "--prediction", run_number, "--out", tmp_path / "one", "--dtype", "float32")
    one, among = load_adapter(tmp_path / "one").vector, load_adapter(out / name).vector
    np.testing.assert_allclose(one, among, rtol=1e-4, atol=1e-6)
    assert parameters_of(tmp_path / "one") == parameters_of(out / name)
    done(bank, "predict", "--all", *merged, "--export", out, "--dtype", "float32")
    other = run(bank, "predict", "--all", "--export", out, "--dtype", "float32")
    assert other.exit_code == 1
    assert "another prediction" in other.stderr


@pytest.mark.parametrize("merge", ["ties", "dare-linear"])
def test_delta_space(bank: Path, data: Path, tmp_path: Path, merge: str) -> None:
    """Products after values were dropped have any rank: the full one is that of the modules."""
    space = ("--space", "delta", "--rank", "full", "--merge", merge, "--density", "0.4")
    result = done(bank, "predict", data, "--out", tmp_path / "out", *space)
    assert "retained energy of a module 1.0000 on average" in result.stdout
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 16
    done(bank, "predict", "--all", "--export", tmp_path / "all", *space, "--top-k", "2")
    assert parameters_of(next((tmp_path / "all").iterdir()))["merge"] == merge


def test_the_plan_counts_them(bank: Path) -> None:
    def flops(*arguments: str) -> int:
        steps = json.loads(done(bank, "plan", "--json", *arguments).stdout)["steps"]
        return int(next(step["flops"] for step in steps if step["name"] == "export"))

    assert flops("--merge", "ties") == 6 * flops()
    assert flops("--merge", "magnitude-prune") == flops()


def test_errors_in_weights_are_of_sums_alone(bank: Path) -> None:
    result = run(bank, "predict", "--all", "--merge", "ties", "--weight-error")
    assert result.exit_code == 2
    assert "weight errors: of weighted sums alone, a merge method found" in result.stderr


# -- negative coefficients -----------------------------------------------------------------------------


@pytest.mark.usefixtures("wavering")
def test_negative_coefficients_are_told(bank: Path, data: Path, pairs_folder: Path, tmp_path: Path) -> None:
    asked = ("predict", data, "--approach", "ridge-signed", "--out")
    printed = done(bank, *asked, tmp_path / "out").stdout
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    weights = {source["name"]: source["coefficient"] for source in record["sources"]}
    negative = {name: weight for name, weight in weights.items() if weight < 0}
    assert negative
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert f"{len(negative)} of {len(weights)} coefficients are negative" in printed
    assert all(name in printed for name in weights)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "a weighted sum of trained adapters" in text
    assert "so that it is no convex combination" in text
    assert f"- Sources with a negative coefficient: {len(negative)}\n" in text
    sources = json.loads(done(bank, *asked, tmp_path / "again", "--json").stdout)["sources"]
    assert sources == pytest.approx(weights, abs=1e-6)
    assert {source["scaling"] for source in record["sources"]} == {record["scaling"]}
    vectors = [load_adapter(pairs_folder / "adapters" / name).vector.astype(float) for name in weights]
    expected = np.asarray(list(weights.values())) @ vectors
    np.testing.assert_allclose(load_adapter(tmp_path / "out").vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("wavering")
def test_without_the_sign_it_is_a_convex_combination(bank: Path, data: Path, tmp_path: Path) -> None:
    printed = done(bank, "predict", data, "--approach", "ridge", "--out", tmp_path / "out").stdout
    assert "negative" not in printed + (tmp_path / "out" / "README.md").read_text()


def test_a_mean_by_negative_weights_is_refused(bank: Path, data: Path, tmp_path: Path) -> None:
    asked = ("predict", data, "--approach", "ridge-signed", "--merge", "ties", "--out", tmp_path / "out")
    result = run(bank, *asked)
    assert result.exit_code == 2
    assert "pass --merge-weights peft, or another method" in result.stderr
    assert not (tmp_path / "out").exists()
    done(bank, *asked, "--merge-weights", "peft")


def test_a_report_has_no_pictures_of_them(bank: Path, tmp_path: Path) -> None:
    result = run(bank, "report", "--out", tmp_path / "page.html", "--approach", "ridge-signed")
    assert result.exit_code == 2
    assert "report: pictures are of coefficients from 0 on" in result.stderr
    assert not (tmp_path / "page.html").exists()
