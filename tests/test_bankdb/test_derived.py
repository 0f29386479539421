"""What is derived from a bank, damaged, deleted, stale: computed again and right, or an error that names the file."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bankdb.arrays.metadata import ArrayLayout, read_metadata
from bankdb.arrays.shards import read_row
from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.derived import KINDS, delete_derived, find_array, make_array
from bankdb.errors import BankError, BankFormatError
from bankdb.initialisation.compare import compare
from bankdb.progress import SilentProgress
from bankdb.scaled_rows import sources_of
from bankdb.verify import verify
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.gram.matrix import gram_matrix
from compute.labels.kept_losses import KeptLosses
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.networks.models import stored_model
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic, draw_tokens, draw_vector

# How many flips, and histories of a database; more by hand.
DRAWS = int(os.environ.get("DERIVED_DRAWS", "12"))
NEURAL = PredictionOptions(metric="js", approach="neural", width=4, epochs=2, knots=16)
N = 5

Result = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as opened:
        yield opened


@pytest.fixture(scope="module")
def template(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    """A bank with every kind of derived array, to be copied."""
    path = tmp_path_factory.mktemp("derived") / "bank"
    made = create_synthetic(path, tokenizer_folder)
    for seed in range(N):
        add(made, f"a{seed}", seed, alpha=16 if seed == 2 else 8)
    computed(made.bank, cluster)
    made.bank.close()
    return path


@pytest.fixture(scope="module")
def right(template: Path, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Result:
    return computed_anew(template, tmp_path_factory.mktemp("anew") / "bank", cluster)


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "bank"))


def add(made: SyntheticBank, name: str, seed: int, alpha: float = 8) -> None:
    made.add(name, draw_tokens(seed, size=60), draw_vector(seed, made.layout.size), alpha=alpha)


def computed(bank: AdapterBank, cluster: Cluster, kinds: Collection[str] = KINDS) -> Result:
    """What is derived, as its users get it."""
    adapters = bank.adapters()
    found: Result = {}
    silent = SilentProgress()
    if {"distances", "distributions"} & set(kinds):
        found |= {metric: distances(bank, metric, cluster=cluster).values for metric in ("js", "wd")}
    if "gram" in kinds:
        with bank.computing(silent):
            found["gram"] = gram_matrix(bank, adapters, sources_of(bank, adapters), cluster, silent)
    if "neural" in kinds:
        found["neural"] = coefficients(bank, NEURAL, cluster=cluster).values
        network = stored_model(bank, "jensen-shannon", NEURAL.neural, adapters, silent)
        found |= {f"network {name}": values for name, values in network.to_arrays().items()}
    if "predictions" in kinds:
        predicted = predict_all_stored(bank, PredictionOptions(metric="wd"), cluster=cluster)
        again = "delete predictions.zarr and run the same command again"
        rows = range(len(adapters))
        found["predictions"] = np.stack([read_row(predicted.path / "adapters", row, again) for row in rows])
        found["coefficients"] = np.asarray(open_array(predicted.path / "coefficients")[:, :])
    if "initialisation" in kinds:
        told = compare(bank, silent)
        assert told is not None
        found["initialisation"] = np.asarray([told.nearest[adapter.row] for adapter in adapters])
    if "losses" in kinds:
        with bank.computing(silent):
            kept = KeptLosses(bank, "5" * 64, silent)
            for adapter in adapters:
                if kept.find(adapter.row_sha256) is None:
                    kept.keep(adapter.row_sha256, int(adapter.row_sha256[:8], 16) / 2**32)
            found["losses"] = np.asarray([kept.find(adapter.row_sha256) for adapter in adapters])
    return found


def computed_anew(bank: Path, path: Path, cluster: Cluster) -> Result:
    """The same on a copy in which nothing is derived yet."""
    ignored = shutil.ignore_patterns(*(f"{kind}.zarr" for kind in KINDS))
    shutil.copytree(bank, path, ignore=ignored)
    with AdapterBank.open(path) as opened:
        forget_runs(opened)
        return computed(opened, cluster)


def forget_runs(bank: AdapterBank) -> None:
    for run in bank.runs.all():
        bank.runs.delete(run.id)


def assert_right(found: Result, expected: Result, what: str) -> None:
    assert found
    for name, values in found.items():
        # Adam's first steps go by the sign of a gradient: the last digit of another order of summation is enough.
        atol = 4e-3 if name.startswith("network") else 1e-6
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=atol, err_msg=f"{what}: {name}")


def derived_files(path: Path, kind: str) -> list[Path]:
    return sorted(file for file in (path / f"{kind}.zarr").rglob("*") if file.is_file())


def assert_right_or_named(path: Path, file: Path, expected: Result, cluster: Cluster, kind: str) -> str:
    """The result is right after computing again, or an error names the file; its advice, followed, helps."""
    for _ in range(4):
        with AdapterBank.open(path) as bank:
            try:
                found = computed(bank, cluster, [kind])
            except BankError as error:
                message = str(error)
            else:
                assert_right(found, expected, str(file))
                return "right"
        places = [file, *file.parents[: len(file.relative_to(path).parts) - 2]]
        assert any(str(place) in message for place in places), (file, message)
        advised = re.search(r"delete (\S+?)[;,]? (and run|run)", message)
        assert advised is not None, message
        target = path / advised[1]  # absolute, or a name in the bank
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    raise AssertionError(f"{file}: still refused after its advice was followed: {message}")


def forget_distances(path: Path) -> None:
    """So that the token counts are read."""
    shutil.rmtree(path / "distances.zarr")


def meaning(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return None


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_bit(path: Path, template: Path, right: Result, cluster: Cluster, kind: str) -> None:
    rng = random.Random(f"{kind} {os.environ.get('DERIVED_SEED', '0')}")
    files = derived_files(path, kind)
    for number in range(DRAWS):
        file = files[number % len(files)]
        before = file.read_bytes()
        raw = bytearray(before)
        bit = rng.randrange(8 * len(raw))
        raw[bit // 8] ^= 1 << bit % 8
        file.write_bytes(raw)
        if file.name != "zarr.json" or meaning(before) != meaning(bytes(raw)):
            with AdapterBank.open(path) as bank:
                report = verify(bank)
            assert any(str(file) in line for line in report.damage), (file, bit, report)
        if kind == "distributions":
            forget_distances(path)
        assert_right_or_named(path, file, right, cluster, kind)
        shutil.rmtree(path)
        shutil.copytree(template, path)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_any_deleted_file(path: Path, template: Path, right: Result, cluster: Cluster, kind: str) -> None:
    for file in derived_files(path, kind):
        file.unlink()
        if file.parent != path / f"{kind}.zarr":  # the kind's own group holds nothing
            with AdapterBank.open(path) as bank:
                report = verify(bank)
            lines = report.damage + report.leftovers
            assert any(str(file) in line for line in lines) or file.parent.parent.name == "predictions.zarr"
        if kind == "distributions":
            forget_distances(path)
        assert_right_or_named(path, file, right, cluster, kind)
        shutil.rmtree(path)
        shutil.copytree(template, path)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_repairs_what_is_damaged(path: Path, right: Result, cluster: Cluster, kind: str) -> None:
    file = next(file for file in derived_files(path, kind) if file.name != "zarr.json")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)
    with AdapterBank.open(path) as bank:
        assert not verify(bank).clean
        report = verify(bank, repair=True)
        assert report.clean, report
        assert any(str(file) in line for line in report.repaired)
        assert not file.exists()
        assert_right(computed(bank, cluster), right, kind)
        assert verify(bank).clean


# -- databases from an hour ago ------------------------------------------------------------------------


@pytest.mark.faults
def test_databases_from_an_hour_ago(
    tokenizer_folder: Path, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row numbers are given again; what is called done is of another lineage; runs end halfway.

    The rows go back with the database: that they are its own is checked elsewhere.
    """
    seed = int(os.environ.get("DERIVED_SEED", "0"))
    for history in range(max(2, DRAWS // 6)):
        folder = tmp_path / f"history{history}"
        folder.mkdir()
        run_history(folder, tokenizer_folder, random.Random(f"{seed} {history}"), cluster, monkeypatch)
        shutil.rmtree(folder)


def run_history(
    folder: Path, tokenizer: Path, rng: random.Random, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "bank"
    create_synthetic(path, tokenizer).bank.close()
    snapshots: list[Path] = []
    told: list[str] = []
    for step in range(9):
        with AdapterBank.open(path) as bank:
            change(SyntheticBank(bank, synthetic_layout(), folder / "config.json"), rng, told)
            if rng.random() < 0.4:
                with monkeypatch.context() as patched:
                    interrupt(patched, rng.randrange(3))
                    try:
                        computed(bank, cluster)
                    except KeyboardInterrupt:
                        told.append("interrupted")
            if rng.random() < 0.6:
                told.append("computed")
                computed(bank, cluster)
        snapshots.append(snapshot(path, folder / f"snapshot{step}"))
        if step > 2 and rng.random() < 0.6:
            chosen = rng.choice(snapshots[:-1])
            told.append(f"restored {chosen.name}")
            restore(path, chosen)
    expected = computed_anew(path, folder / "anew", cluster)
    with AdapterBank.open(path) as bank:
        assert_right(computed(bank, cluster), expected, "; ".join(told))


def synthetic_layout() -> Any:
    from tests.support.banks.synthetic_bank import layout_of

    return layout_of()


def change(made: SyntheticBank, rng: random.Random, told: list[str]) -> None:
    """Ingest, remove, replace; the same weights at another scaling, the same dataset with other weights."""
    names = [record.name for record in made.bank.adapters()]
    while len(names) < 5:
        name = f"n{len(names)}{rng.randrange(1000)}"
        names.append(name)
        vector = draw_vector(rng.randrange(6), made.layout.size)
        made.add(name, draw_tokens(rng.randrange(6), size=60), vector, alpha=rng.choice([8, 8, 16]))
        told.append(f"added {name}")
    if rng.random() < 0.5:
        gone = rng.choice(names)
        made.bank.remove(gone)
        told.append(f"removed {gone}")
        add(made, f"{gone}x", rng.randrange(6), alpha=rng.choice([8, 16]))


def interrupt(patched: pytest.MonkeyPatch, after: int) -> None:
    from compute.cluster.tasks import run_tasks

    def interrupted(*arguments: Any, **named: Any) -> Iterator[Any]:
        for number, found in enumerate(run_tasks(*arguments, **named)):
            if number >= after:
                raise KeyboardInterrupt
            yield found
        raise KeyboardInterrupt

    which = ("compute.pairwise.matrix", "compute.gram.matrix", "compute.combination.predictions")
    patched.setattr(f"{which[after]}.run_tasks", interrupted)


def snapshot(path: Path, target: Path) -> Path:
    shutil.copytree(path, target, ignore=shutil.ignore_patterns(*(f"{kind}.zarr" for kind in KINDS)))
    return target


def restore(path: Path, source: Path) -> None:
    for item in list(path.iterdir()):
        if item.name not in {f"{kind}.zarr" for kind in KINDS}:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    shutil.copytree(source, path, dirs_exist_ok=True)


def test_the_same_weights_at_another_scaling_are_another_row(
    path: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """The database of before gives the same row number to the same values, with another `lora_alpha`."""
    before = snapshot(path, tmp_path / "before")
    for alpha in (8.0, 32.0):
        restore(path, before)
        with AdapterBank.open(path) as bank:
            made = SyntheticBank(bank, synthetic_layout(), tmp_path / "config.json")
            add(made, "late", 77, alpha=alpha)
            found = computed(bank, cluster)
        expected = computed_anew(path, tmp_path / f"anew{alpha}", cluster)
        assert_right(found, expected, f"alpha {alpha}")


def test_an_entry_that_another_lineage_overwrote_is_not_called_done(
    path: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """Computed, taken back, computed with another dataset in its row, which was removed again."""
    before = snapshot(path, tmp_path / "before")

    def lineage(seed: int) -> SyntheticBank:
        bank = AdapterBank.open(path)
        made = SyntheticBank(bank, synthetic_layout(), tmp_path / "config.json")
        add(made, "late", seed)
        computed(bank, cluster)
        return made

    lineage(80).bank.close()
    first = snapshot(path, tmp_path / "first")
    restore(path, before)
    other = lineage(81)
    other.bank.remove("late")
    computed(other.bank, cluster)
    other.bank.close()
    restore(path, first)
    expected = computed_anew(path, tmp_path / "anew", cluster)
    with AdapterBank.open(path) as bank:
        assert_right(computed(bank, cluster), expected, "restored")


# -- what is deleted -----------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def strangers(folder: Path) -> Path:
    """A folder of somebody's, with names as a bank has them too."""
    for name in (
        "photos/a.jpg",
        "part-0123/b",
        "part-0123456789abcdef/notes",
        "0123456789abcdef/ids/mine",
        "c/0",
    ):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_deleted_behind_a_link(path: Path, cluster: Cluster, tmp_path: Path, kind: str) -> None:
    outside = strangers(tmp_path / "outside")
    shutil.copytree(path / f"{kind}.zarr", outside, dirs_exist_ok=True)
    half = outside / f"0.{'0a' * 16}.partial"
    half.write_bytes(b"half")
    before = files_of(outside)
    shutil.rmtree(path / f"{kind}.zarr")
    (path / f"{kind}.zarr").symlink_to(outside, target_is_directory=True)
    with AdapterBank.open(path) as bank:
        add(SyntheticBank(bank, synthetic_layout(), tmp_path / "config.json"), "late", 90)
        computed(bank, cluster)
        verify(bank, repair=True)
    after = files_of(outside)
    assert before.keys() <= after.keys()
    kept = [name for name in before if not name.endswith("zarr.json")]
    if kind in {"distributions", "predictions", "neural"}:
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    else:  # an array that grows is written in its place
        mine = [name for name in kept if (outside / name).parent.name != "0"]
        assert {name: after[name] for name in mine} == {name: before[name] for name in mine}


def test_what_is_not_the_banks_stays(path: Path, cluster: Cluster, tmp_path: Path) -> None:
    for kind in KINDS:
        strangers(path / f"{kind}.zarr")
    ours = {kind: {item.name for item in (path / f"{kind}.zarr").iterdir()} for kind in KINDS}
    names = [f"{kind}.zarr/{name}" for kind in KINDS for name in files_of(strangers(tmp_path / "outside"))]
    with AdapterBank.open(path) as bank:
        add(SyntheticBank(bank, synthetic_layout(), tmp_path / "config.json"), "late", 91)
        computed(bank, cluster)
        assert verify(bank, repair=True).clean
    assert all((path / name).is_file() for name in names), names
    assert ours


def test_another_banks_array_is_refused_and_stays(path: Path, tmp_path: Path) -> None:
    target = path / "gram.zarr" / "gram"
    layout = ArrayLayout((2, 2), (2, 2), "float64")
    with AdapterBank.open(path) as bank:
        file = target / "zarr.json"
        file.write_text(file.read_text().replace(bank.record.identity, "0" * 32))
        with pytest.raises(BankFormatError, match=r"gram/zarr\.json"):
            delete_derived(bank, target)
        from bankdb.arrays.metadata import write_array

        write_array(target, layout, {"bank": "0" * 32, "made_from": "x"})
        before = files_of(target)
        for refused in (
            lambda: delete_derived(bank, target),
            lambda: make_array(bank, target, layout, "x"),
            lambda: find_array(bank, target, layout, "x", SilentProgress()),
        ):
            with pytest.raises(BankFormatError, match="not this bank's"):
                refused()
        assert files_of(target) == before


# -- metadata ------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_flip_anywhere_in_metadata_is_seen(path: Path) -> None:
    """Every bit of it: refused, or the same meaning."""
    array = path / "distances.zarr" / "jensen-shannon"
    file = array / "zarr.json"
    raw = file.read_bytes()
    before = read_metadata(array)
    refused: list[bool] = []
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            found = read_metadata(array)
        except BankFormatError as error:
            refused.append(str(file) in str(error))
            continue
        if found is not None and found.sealed:
            assert found == before
        else:  # the seal's own name: then there is an attribute too many for an array that has none
            assert found is not None
            assert set(found.attributes) - {"seal"} - set(before.attributes if before else {})
    assert all(refused)
    assert len(refused) > 4 * len(raw)


def test_a_seal_that_lost_its_name_is_found(path: Path) -> None:
    for file in derived_files(path, "neural"):
        raw = file.read_bytes()
        if b'"seal"' in raw:
            file.write_bytes(raw.replace(b'"seal"', b'"sean"'))
            with AdapterBank.open(path) as bank:
                assert any(str(file) in line for line in verify(bank).damage)
            file.write_bytes(raw)


def test_zarr_opens_what_is_written(path: Path) -> None:
    for file in path.rglob("zarr.json"):
        if json.loads(file.read_text())["node_type"] == "array":
            assert open_array(file.parent).shape == tuple(json.loads(file.read_text())["shape"])


def test_nothing_is_computed_or_written_twice(path: Path, cluster: Cluster) -> None:
    before = {kind: files_of(path / f"{kind}.zarr") for kind in KINDS}
    with AdapterBank.open(path) as bank:
        progress = RecordedProgress()
        distances(bank, "js", cluster=cluster, progress=progress)
        coefficients(bank, NEURAL, cluster=cluster, progress=progress)
        predict_all_stored(
            bank, PredictionOptions(metric="wd"), cluster=cluster, weight_errors=True, progress=progress
        )
        assert progress.stages == {}
    assert {kind: files_of(path / f"{kind}.zarr") for kind in KINDS} == before
