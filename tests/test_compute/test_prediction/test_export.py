"""Predicted adapters as folders: what is in them, what is kept, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.errors import AdapterError, BankFormatError, ConflictError, ParameterError
from bankdb.peft.weights import load_adapter
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.prediction.predict import predict
from compute.prediction.predict_all import PredictedBank, predict_all
from tests.support.banks.malformed_adapters import BASE_MODEL, HIDDEN, LAYERS, RANK, TARGETS, read_weights
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset, write_pairs
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import create_synthetic, draw_tokens, draw_vector

FILES = {"adapter_config.json", "adapter_model.safetensors", "provenance.json", "README.md"}
DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as opened:
        yield opened


OPTIONS = PredictionOptions(temperature=0.7)


@pytest.fixture
def predicted(bank: AdapterBank, cluster: Cluster) -> PredictedBank:
    return predict_all(bank, OPTIONS, cluster=cluster)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*")}


def provenance(folder: Path) -> dict[str, object]:
    return json.loads((folder / "provenance.json").read_text())  # type: ignore[no-any-return]


def dtypes_in(folder: Path) -> set[str]:
    header, _ = read_weights(folder)
    return {spec["dtype"] for name, spec in header.items() if name != "__metadata__"}


# -- what is in a folder -------------------------------------------------------------------------------


def test_every_adapter_has_its_folder(bank: AdapterBank, predicted: PredictedBank, tmp_path: Path) -> None:
    folders = predicted.save(tmp_path / "out")
    names = [record.name for record in bank.adapters()]
    assert folders == [tmp_path / "out" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    # The bytes of the way before: all are stored, and written from there.
    stored = np.asarray(open_array(predict_all_stored(bank, OPTIONS).path / "adapters")[:, :])
    for folder, vector in zip(folders, stored, strict=True):
        assert {path.name for path in folder.iterdir()} == FILES
        read = load_adapter(folder, expected=bank.layout, base_models=(BASE_MODEL,))
        assert read.dtype == "float32"
        assert read.vector.tobytes() == vector.tobytes()
        assert read.config.scaling == bank.record.scaling
        assert read.config.task_type == "CAUSAL_LM"


def test_provenance_of_leave_one_out(
    bank: AdapterBank, predicted: PredictedBank, tmp_path: Path, pairs_folder: Path
) -> None:
    bank.catalog.set_group("task000", "first", "MIT")
    changed = predict_all(bank, PredictionOptions(temperature=0.7))
    changed.save(tmp_path / "out")
    found = provenance(tmp_path / "out" / "task003")
    assert found["name"] == "task003"
    assert found["leave_one_out"] is True
    assert found["metric"] == "jensen-shannon"
    assert found["approach"] == "normalized"
    assert found["parameters"] == {"temperature": 0.7}
    assert found["base_model"] == BASE_MODEL
    assert found["text_rule"] == bank.record.text_rule
    assert found["tokenizer"]["fingerprint"] == bank.record.tokenizer_fingerprint
    assert (found["rank"], found["alpha"], found["use_rslora"], found["scaling"]) == (4, 8, False, 2)
    assert found["dtype"] == "float32"
    for library in ("numpy", "zarr", "dask", "transformers", "lora-bank"):
        assert found["versions"][library] == importlib.metadata.version(library)
    target = bank.catalog.adapter("task003")
    assert found["dataset"] == {
        "content_sha256": target.content_sha256,
        "examples": target.examples,
        "tokens": target.tokens,
    }
    weights = predicted.coefficients.values[3].astype(np.float32)
    sources = {source["name"]: source for source in found["sources"]}
    assert set(sources) == {f"task{index:03d}" for index in range(6)} - {"task003"}
    listed = [source["coefficient"] for source in found["sources"]]
    assert listed == sorted(listed, reverse=True)
    assert sum(listed) == pytest.approx(1, abs=1e-6)
    assert found["effective_sources"] == pytest.approx(1 / sum(w * w for w in listed))
    for index, record in enumerate(bank.adapters()):
        if record.name == "task003":
            continue
        source = sources[record.name]
        assert source["coefficient"] == float(weights[index])
        assert source["sha256"] == record.source_sha256
        assert source["dataset_sha256"] == record.content_sha256
        assert source["source"] == record.name  # no path of this machine
        assert source["licence"] == ("MIT" if record.name == "task000" else None)
        assert source["group"] == ("first" if record.name == "task000" else None)
    card = (tmp_path / "out" / "task003" / "README.md").read_text()
    assert "task003" in card
    assert all(f"`{name}`" in card or name in card for name in sources)


def test_provenance_of_a_new_dataset(bank: AdapterBank, pairs_folder: Path, tmp_path: Path) -> None:
    data = pairs_folder / "datasets" / "task002"
    found = predict(bank, data, PredictionOptions(metric="mmd", kernel="gaussian", sigma=4.0, top_k=2))
    assert found.save(tmp_path / "out") == tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    record = provenance(tmp_path / "out")
    assert record["name"] == "task002"
    assert record["left_out"] == ["task002"]
    assert "leave_one_out" not in record
    assert record["metric"] == "mmd-gaussian-4.0"
    assert record["parameters"] == {"kernel": "gaussian", "sigma": 4.0, "top_k": 2}
    assert record["dataset"]["content_sha256"] == found.dataset.sha256
    assert record["dataset"]["examples"] == 12
    assert sum(source["coefficient"] for source in record["sources"]) == pytest.approx(1, abs=1e-6)
    assert len(record["sources"]) == 2
    vector = load_adapter(tmp_path / "out", expected=bank.layout).vector
    assert record["dtype"] == DTYPES_OF[next(iter(dtypes_in(tmp_path / "out")))]
    np.testing.assert_allclose(vector, found.vector, rtol=2**-8)


DTYPES_OF = {code: name for name, code in DTYPE_CODES.items()}


def test_nothing_depends_on_when_or_where(
    bank: AdapterBank, predicted: PredictedBank, tmp_path: Path
) -> None:
    predicted.save(tmp_path / "one")
    predicted.save(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# -- dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_sources_of_one_dtype_give_that_dtype(
    tokenizer_folder: Path, tmp_path: Path, dtype: str, cluster: Cluster
) -> None:
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        ingest_folder(bank, write_pairs(tmp_path / "pairs", 3, dtypes=(dtype,)))
        predicted = predict_all(bank, cluster=cluster)
        for folder in predicted.save(tmp_path / "out"):
            assert dtypes_in(folder) == {dtype}
            assert provenance(folder)["dtype"] == DTYPES_OF[dtype]
        found = predict(bank, write_dataset(tmp_path / "newdata", 40))
        assert dtypes_in(found.save(tmp_path / "new")) == {dtype}


def test_sources_of_several_dtypes_give_float32_unless_one_is_used(
    bank: AdapterBank, predicted: PredictedBank, cluster: Cluster, tmp_path: Path
) -> None:
    for folder in predicted.save(tmp_path / "mixed"):
        assert dtypes_in(folder) == {"F32"}
    nearest = predict_all(bank, PredictionOptions(approach="nearest"), cluster=cluster)
    folders = nearest.save(tmp_path / "nearest")
    for index, folder in enumerate(folders):
        source = nearest.coefficients.adapters[int(nearest.coefficients.values[index].argmax())]
        assert dtypes_in(folder) == {DTYPE_CODES[source.dtype]}


@pytest.mark.parametrize("dtype", list(DTYPE_CODES))
def test_a_dtype_that_is_asked_for(
    bank: AdapterBank, predicted: PredictedBank, tmp_path: Path, dtype: str
) -> None:
    types = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    (folder, *_) = predicted.save(tmp_path / "out", dtype=dtype)
    assert dtypes_in(folder) == {DTYPE_CODES[dtype]}
    vector = np.asarray(open_array(predict_all_stored(bank, OPTIONS).path / "adapters")[0, :])
    rounded = vector.astype(types[dtype]).astype(np.float32)
    assert load_adapter(folder).vector.tobytes() == rounded.tobytes()


def test_another_dtype_is_refused(bank: AdapterBank, predicted: PredictedBank, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected one of source, float32, float16, bfloat16"):
        predicted.save(tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_values_too_large_for_float16(tokenizer_folder: Path, tmp_path: Path, cluster: Cluster) -> None:
    made = create_synthetic(tmp_path / "bank", tokenizer_folder)
    for seed in range(3):
        vector = draw_vector(seed, made.layout.size)
        vector[3] = 3e5
        made.add(f"a{seed}", draw_tokens(seed), vector)
    predicted = predict_all(made.bank, cluster=cluster)
    with pytest.raises(AdapterError, match="too large for float16"):
        predicted.save(tmp_path / "out", dtype="float16")
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    predicted.save(tmp_path / "out", dtype="bfloat16")
    made.bank.close()


# -- again ---------------------------------------------------------------------------------------------


def test_the_same_again_keeps_every_folder(
    bank: AdapterBank, predicted: PredictedBank, cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predicted.save(out)
    before = inodes(out)
    again = predict_all(bank, PredictionOptions(temperature=0.7), cluster=cluster)
    for overwrite in (False, True):
        again.save(out, overwrite=overwrite)
        assert inodes(out) == before


def test_missing_and_unfinished_folders_are_made(
    bank: AdapterBank, predicted: PredictedBank, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predicted.save(out)
    whole, before = contents(out), inodes(out)
    shutil.rmtree(out / "task001")
    (out / "task004" / "adapter_model.safetensors").unlink()
    shutil.move(out / "task005", out / ".task005.partial-0badc0de")
    with pytest.raises(ConflictError, match="task004"):
        predicted.save(out)
    shutil.rmtree(out / "task004")
    predicted.save(out)
    assert contents(out) == whole
    kept = [name for name in before if name.startswith(("task000", "task002", "task003"))]
    assert {name: before[name] for name in kept}.items() <= inodes(out).items()


@pytest.mark.parametrize("options", [{"temperature": 0.71}, {"approach": "uniform"}, {"metric": "wd"}])
def test_another_prediction_does_not_replace_a_folder(
    bank: AdapterBank, predicted: PredictedBank, cluster: Cluster, tmp_path: Path, options: dict[str, object]
) -> None:
    out = tmp_path / "out"
    predicted.save(out)
    before = contents(out)
    other = predict_all(bank, PredictionOptions(**options), cluster=cluster)  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="another prediction; choose another folder, or pass --overwrite"):
        other.save(out)
    assert contents(out) == before
    other.save(out, overwrite=True)
    after = contents(out)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after if name.endswith("provenance.json"))
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_another_dtype_is_another_folder(bank: AdapterBank, predicted: PredictedBank, tmp_path: Path) -> None:
    predicted.save(tmp_path / "out")
    with pytest.raises(ConflictError):
        predicted.save(tmp_path / "out", dtype="bfloat16")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_adapter_is_never_replaced(
    bank: AdapterBank, predicted: PredictedBank, tmp_path: Path, overwrite: bool
) -> None:
    out = tmp_path / "out"
    (out / "task002").mkdir(parents=True)
    (out / "task002" / "thesis.txt").write_text("years of work")
    (out / "task003").write_text("a file")
    with pytest.raises(ConflictError):
        predicted.save(out, overwrite=overwrite)
    assert (out / "task002" / "thesis.txt").read_text() == "years of work"
    assert (out / "task003").read_text() == "a file"


def test_a_single_prediction_does_not_replace_a_folder(bank: AdapterBank, tmp_path: Path) -> None:
    found = predict(bank, write_dataset(tmp_path / "newdata", 40))
    found.save(tmp_path / "out")
    with pytest.raises(ConflictError, match="overwrite"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", dtype="float16", overwrite=True)
    assert dtypes_in(tmp_path / "out") == {"F16"}


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_damaged_prediction_is_not_exported(bank: AdapterBank, tmp_path: Path, damage: str) -> None:
    predicted = predict_all_stored(bank, OPTIONS)
    (shard,) = (predicted.path / "adapters").glob("c/*/*")
    if damage == "deleted":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(BankFormatError, match=r"delete predictions\.zarr and run the same command again"):
        predicted.save(tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# -- PEFT itself ---------------------------------------------------------------------------------------


@pytest.mark.torch
def test_peft_loads_it_and_computes_what_the_combination_says(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path
) -> None:
    """On a tiny random Llama: logits equal those of the weights changed by hand."""
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(20)[None, :]
    predicted = predict_all(bank, cluster=cluster)
    (folder, *_) = predicted.save(tmp_path / "out")
    combined = _combined_factors(bank, predicted.coefficients.values[0])
    changed = LlamaForCausalLM(config).eval()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        plain = model(ids).logits
        for layer in range(LAYERS):
            for target in TARGETS:
                module = getattr(changed.model.layers[layer].self_attn, target)
                a, b = (combined[f"{layer}.{target}.{factor}"] for factor in "AB")
                module.weight += torch.from_numpy((8 / RANK * b @ a).astype(np.float32))
        expected = changed(ids).logits
        loaded = PeftModel.from_pretrained(model, str(folder)).eval()
        found = loaded(ids).logits
    assert (expected - plain).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _combined_factors(bank: AdapterBank, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Factors combined in double precision, from the stored rows, by `layer.module.factor`."""
    total: dict[str, NDArray[np.float64]] = {}
    for weight, record in zip(weights, bank.adapters(), strict=True):
        for name, tensor in bank.layout.unflatten(bank.store.read(record.row)).items():
            parts = name.split(".")
            key = f"{parts[parts.index('layers') + 1]}.{parts[-3]}.{parts[-2][-1]}"
            total[key] = total.get(key, 0) + weight * tensor.astype(np.float64)
    return total
