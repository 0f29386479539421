"""PEFT itself as the oracle: what it saves is read, what is written it loads, and both mean the same."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.errors import AdapterError
from bankdb.peft.config import render_config
from bankdb.peft.folder import write_adapter_folder
from bankdb.peft.header import DTYPES
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import load_adapter, source_file, write_safetensors
from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, WEIGHTS


def round_trips(folder: Path) -> None:
    adapter = load_adapter(folder)
    assert source_file(adapter.vector, adapter.layout, adapter.header) == (folder / WEIGHTS).read_bytes()


def lora(base_model: Any, folder: Path, *, seed: int = 0, dtype: str = "float32", **options: Any) -> Any:
    """Make and save an adapter with PEFT; returns its model."""

    import torch
    from peft import LoraConfig, get_peft_model

    arguments = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(base_model), LoraConfig(**(arguments | options)))
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(getattr(torch, dtype)) / 4
    # Without looking the base model up on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.arange(40).reshape(2, 20)).logits.double().numpy()
    return found


def load_with_peft(base_model: Any, folder: Path) -> Any:

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as for keys that are missing or not used
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return PeftModel.from_pretrained(copy.deepcopy(base_model), folder).eval()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_peft_saves_comes_back_byte_for_byte(tmp_path: Path, base_model: Any, dtype: str) -> None:
    import torch

    model = lora(base_model, tmp_path / "adapter", dtype=dtype)
    adapter = load_adapter(tmp_path / "adapter", base_models=[BASE_MODEL])
    round_trips(tmp_path / "adapter")
    assert adapter.dtype == dtype
    tensors = adapter.layout.unflatten(adapter.vector)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            saved = torch.from_numpy(tensors.pop(name.replace(".default", "")))
            assert torch.equal(saved, parameter.data.float())
    assert not tensors


@pytest.mark.torch
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 8), (3, 7), (8, 1)])
def test_scaling_is_what_peft_multiplies_by(
    tmp_path: Path, base_model: Any, rank: int, alpha: int, use_rslora: bool
) -> None:
    model = lora(base_model, tmp_path / "adapter", r=rank, lora_alpha=alpha, use_rslora=use_rslora)
    config = load_adapter(tmp_path / "adapter").config
    layers = [m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert len(layers) == 4
    assert all(layer.scaling["default"] == config.scaling for layer in layers)


def export(folder: Path, vector: np.ndarray, layout: AdapterLayout, scaling: tuple[float, bool]) -> None:
    text = render_config(BASE_MODEL, layout, scaling, "CAUSAL_LM")
    write_adapter_folder(
        folder,
        files={
            CONFIG: text.encode(),
            WEIGHTS: lambda path: write_safetensors(path, vector, layout, "float32"),
        },
    )


@pytest.mark.torch
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_predicted_adapter_does_in_peft_what_the_arithmetic_says(
    tmp_path: Path, base_model: Any, use_rslora: bool
) -> None:
    coefficients = [0.5, 0.2, 0.3]
    models = [lora(base_model, tmp_path / str(i), seed=i, use_rslora=use_rslora) for i in range(3)]
    adapters = [load_adapter(tmp_path / str(i)) for i in range(3)]
    layout = adapters[0].layout
    vector = sum(c * a.vector for c, a in zip(coefficients, adapters, strict=True)).astype(np.float32)
    export(tmp_path / "predicted", vector, layout, (adapters[0].config.alpha, use_rslora))
    # The combination by torch, in place.
    for parameters in zip(*[m.named_parameters() for m in models], strict=True):
        if ".lora_" in parameters[0][0]:
            total = sum(c * p.data for c, (_, p) in zip(coefficients, parameters, strict=True))
            parameters[0][1].data = total
    found = logits(load_with_peft(base_model, tmp_path / "predicted"))
    np.testing.assert_allclose(found, logits(models[0]), rtol=1e-5, atol=1e-6)
    assert np.abs(found - logits(base_model)).max() > 1e-2


@pytest.mark.torch
def test_an_adapter_is_brought_to_another_scaling_by_its_b_columns(tmp_path: Path, base_model: Any) -> None:
    model = lora(base_model, tmp_path / "source", lora_alpha=24, use_rslora=True)
    source = load_adapter(tmp_path / "source")
    vector = source.vector.copy()
    for start, stop in source.layout.b_segments():
        vector[start:stop] *= source.config.scaling / (8 / 4)
    export(tmp_path / "rescaled", vector, source.layout, (8.0, False))
    np.testing.assert_allclose(
        logits(load_with_peft(base_model, tmp_path / "rescaled")), logits(model), rtol=1e-4, atol=1e-5
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["self_attn.q_proj", "model.layers.0.mlp.up_proj"]},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_however_modules_were_selected_a_prediction_adapts_the_same_ones(
    tmp_path: Path, base_model: Any, options: dict[str, Any]
) -> None:
    model = lora(base_model, tmp_path / "source", **options)
    source = load_adapter(tmp_path / "source")
    export(tmp_path / "copy", source.vector, source.layout, (source.config.alpha, False))
    loaded = load_with_peft(base_model, tmp_path / "copy")
    assert set(loaded.targeted_module_names) == set(model.targeted_module_names)
    assert (logits(loaded) == logits(model)).all()
    # A bank ingests its own predictions.
    again = load_adapter(tmp_path / "copy", expected=source.layout)
    assert again.layout == source.layout
    assert (again.vector == source.vector).all()


@pytest.mark.torch
@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_accepted_initialisations_leave_the_base_model_alone(
    tmp_path: Path, base_model: Any, init: bool | str
) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eva wants data
        model = lora(base_model, tmp_path / "adapter", init_lora_weights=init)
    weights = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(weights, base_model.model.layers[0].self_attn.q_proj.weight)
    round_trips(tmp_path / "adapter")


@pytest.mark.torch
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_refused_initialisations_change_it_and_the_conversion_we_name_is_accepted(
    tmp_path: Path, base_model: Any, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT would look the base model up

    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(copy.deepcopy(base_model), config)
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    weights = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert not torch.allclose(weights, base_model.model.layers[0].self_attn.q_proj.weight, atol=1e-4)
    model.save_pretrained(tmp_path / "plain", save_embedding_layers=False)
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        load_adapter(tmp_path / "plain")
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial", save_embedding_layers=False)
    model.peft_config["default"].init_lora_weights = init
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data += torch.randn_like(parameter) / 8
    model.save_pretrained(
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        save_embedding_layers=False,
    )
    adapter = load_adapter(tmp_path / "converted")
    assert adapter.config.rank == 8
    np.testing.assert_allclose(
        logits(load_with_peft(base_model, tmp_path / "converted")), logits(model.eval()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embeddings are adapted"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=str,
)
def test_what_peft_saves_of_other_kinds_is_refused(
    tmp_path: Path, base_model: Any, options: dict[str, Any], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora(base_model, tmp_path / "adapter", **options)
    with pytest.raises(AdapterError, match=message):
        load_adapter(tmp_path / "adapter")
