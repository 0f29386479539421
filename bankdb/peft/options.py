"""The options of PEFT's LoRA configuration: which say nothing about the weights, and which are refused.

Those of PEFT up to 0.21 (`peft/tuners/lora/config.py`) and some of its forerunners and forks. An option that is not
known here and is set is refused by name: it may change what the weights mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bankdb.errors import AdapterError, listed, one_line
from bankdb.strict_json import json_type

# Options that `bankdb.peft.config` interprets itself.
_READ = frozenset(
    {
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)

# Options that say nothing about what the saved weights do, whatever their value.
_HARMLESS = {
    "auto_mapping": "names the Python class of the base model",
    "corda_config": "only read when init_lora_weights is corda, which is refused",
    "ensure_weight_tying": "only acts on embeddings, and LoRA on embeddings is refused by tensor name",
    "eva_config": "how A was initialised before training",
    "inference_mode": "whether the weights are trainable after loading",
    "loftq_config": "only read when init_lora_weights is loftq, which is refused",
    "lora_dropout": "acts in training only",
    "lora_ga_config": "only read when init_lora_weights is lora_ga, which is refused",
    "megatron_core": "only read with megatron_config, which is refused when set",
    "merge_weights": "PEFT before 0.3: whether to merge in evaluation mode",
    "peft_version": "who wrote the file",
    "qalora_group_size": "only read with use_qalora, which is refused when set",
    "runtime_config": "PEFT ignores it in a file",
}

# Options that change what the weights mean, refused when set (neither null nor false nor empty).
_REFUSED = {
    "alora_invocation_tokens": "the adapter is active after its invocation tokens only",
    "alpha_pattern": "modules differ in scaling",
    "arrow_config": "the adapter is routed between other adapters",
    "context_length": "the base model's positions are rescaled",
    "enable_lora": "factors of a merged projection, as PEFT before 0.3 stored them",
    "kasa_config": "the base model's weights are truncated and a diagonal stands between the factors",
    "layer_replication": "the base model's layers are repeated",
    "lora_bias": "B has a bias",
    "megatron_config": "the factors are those of Megatron's parallel layers",
    "modules_to_save": "whole modules are trained beside the factors",
    "monteclora_config": "the factors are sampled",
    "rank_pattern": "modules differ in rank",
    "target_parameters": "the factors belong to parameters, not modules",
    "trainable_token_indices": "embeddings are trained beside the factors",
    "use_bdlora": "the factors are block-diagonal",
    "use_dora": "DoRA's magnitudes cannot be combined linearly",
    "use_qalora": "the inputs of A are pooled",
    "velora_config": "the file holds projections beside the factors",
}

# Patterns of modules, and the option that each module has which no pattern names.
_PATTERNS = {"alpha_pattern": "lora_alpha", "rank_pattern": "r"}

# Initialisations after which the base model's weights are what they were before. `init_lora_weights` may
# also be a boolean: neither changes the base model.
_INIT_HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
# Initialisations that subtract the initial B @ A from the base model's weights: the trained factors are
# relative to weights that nobody else has, so they cannot be combined with ordinary ones.
_INIT_MUTATES = ("pissa", "olora", "corda", "lora_ga")


def check_known(options: dict[str, Any], path: Path) -> None:
    """Raise AdapterError, naming it, if an option is set that changes what the weights mean, or that is not known."""
    in_use = [key for key in sorted(options) if is_set(options[key])]
    restating = restating_patterns(options)
    for key in in_use:
        if key in _REFUSED and key not in restating:
            raise AdapterError(
                f"{path}: {key} was expected to be unset, {shown(options, key)} found: {_REFUSED[key]}; "
                "train a plain LoRA"
            )
    unknown = [key for key in in_use if key not in _READ and key not in _HARMLESS and key not in restating]
    if unknown:
        found = [f"{one_line(key, 60)}: {shown(options, key)}" for key in unknown]
        raise AdapterError(
            f"{path}: unknown options are set ({listed(found)}); they may change what the weights mean: "
            "unset them if they do not"
        )


def restating_patterns(options: dict[str, Any]) -> list[str]:
    """Return which patterns are set and give every module, whatever they match, what it has without them."""
    return [
        key
        for key, stated in _PATTERNS.items()
        if is_set(options.get(key))
        and isinstance(options[key], dict)
        and all(
            type(value) in (int, float) and value == options.get(stated) for value in options[key].values()
        )
    ]


def check_initialisation(value: Any, path: Path) -> None:
    """Raise AdapterError if `init_lora_weights` changed the base model's weights, or is not known."""
    if value is None or isinstance(value, bool):
        return
    name = value.lower() if isinstance(value, str) else ""
    if name in _INIT_HARMLESS:
        return
    found = f"{path}: init_lora_weights {one_line(repr(value), 60)}"
    if name.startswith(_INIT_MUTATES):
        raise AdapterError(
            f"{found} changed the base model's weights, and the adapter is relative to those; convert it: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=INITIAL_ADAPTER) in PEFT"
        )
    if name == "loftq":
        raise AdapterError(
            f"{found} quantised the base model's weights, and the adapter is relative to those; "
            "train on the bank's base model"
        )
    raise AdapterError(
        f"{found} is not known; true, false or one of {', '.join(_INIT_HARMLESS)} was expected"
    )


def is_set(value: Any) -> bool:
    """Whether an option has a value that can mean something: 0 can, so equality with False will not do."""
    return not (value is None or value is False or (isinstance(value, str | list | dict) and not value))


def shown(options: dict[str, Any], key: str) -> str:
    """Show what was found for an option, in at most one short line."""
    if key not in options:
        return "nothing"
    value = options[key]
    if isinstance(value, dict | list) and len(value) > 0:
        return f"{json_type(value)} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
