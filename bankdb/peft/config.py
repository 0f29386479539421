"""`adapter_config.json` of PEFT's LoRA: what is read of it, what is refused, and how one is written.

The options are those of PEFT up to 0.21 (`peft/tuners/lora/config.py`) and some of its forerunners and forks.
An option that is not known here and is set is refused by name: it may change what the weights mean.
"""

from __future__ import annotations

import json
import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.errors import AdapterError, listed
from bankdb.peft.layout import AdapterLayout
from bankdb.strict_json import json_type, parse_object

CONFIG_NAME = "adapter_config.json"
_MAX_BYTES = 16 * 2**20
_TASK_TYPES = ("CAUSAL_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS")

# Options that `read_config` interprets itself.
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

# Initialisations after which the base model's weights are what they were before. `init_lora_weights` may
# also be a boolean: neither changes the base model.
_INIT_HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
# Initialisations that subtract the initial B @ A from the base model's weights: the trained factors are
# relative to weights that nobody else has, so they cannot be combined with ordinary ones.
_INIT_MUTATES = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an `adapter_config.json` says, as far as it bears on the weights.

    Attributes
    ----------
    base_model
        `base_model_name_or_path`.
    revision
        Of the base model; None where the file gives none.
    rank, alpha, use_rslora
        r, lora_alpha and use_rslora: see `scaling`.
    target_modules
        Sorted names, or the one pattern.
    restricted
        Whether exclude_modules, layers_to_transform or layers_pattern is set: then `target_modules` alone
        selects more modules than are adapted.
    fan_in_fan_out
        How the base model stores its weights; no LoRA weight depends on it.
    task_type
        As PEFT names it, or None.
    text
        The whole file.
    """

    base_model: str
    revision: str | None
    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...] | str
    restricted: bool
    fan_in_fan_out: bool
    task_type: str | None
    text: str

    @property
    def scaling(self) -> float:
        """Factor of B @ A: lora_alpha / r, or with rank-stabilised LoRA lora_alpha / sqrt(r)."""
        return scaling(self.alpha, self.rank, self.use_rslora)

    def targets(self, module: str) -> bool:
        """Whether `target_modules` selects a module, by PEFT's rules, given its path in the base model."""
        if not isinstance(self.target_modules, str):
            return any(module == name or module.endswith(f".{name}") for name in self.target_modules)
        if self.target_modules.lower() == "all-linear":
            return True
        return re.fullmatch(self.target_modules, module) is not None


def scaling(alpha: float, rank: int, use_rslora: bool) -> float:
    """Factor of B @ A: alpha / rank, or alpha / sqrt(rank) in rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def read_config(path: Path) -> AdapterConfig:
    """Read and check an `adapter_config.json`.

    Raises
    ------
    AdapterError
        The file cannot be read, is not what PEFT writes for LoRA, or sets an option that changes what the
        weights mean; the option is named.
    """
    text = _read_text(path)
    try:
        options = parse_object(text)
    except ValueError as error:
        raise AdapterError(f"{path}: not a JSON object: {error}; save the adapter again with PEFT") from None
    if options.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path}: peft_type 'LORA' was expected, {_shown(options, 'peft_type')} found; "
            "only LoRA adapters can be combined"
        )
    _check_known(options, path)
    _check_initialisation(options.get("init_lora_weights"), path)
    if options.get("bias", "none") != "none":
        raise AdapterError(
            f"{path}: bias 'none' was expected, {_shown(options, 'bias')} found; train without biases"
        )
    return AdapterConfig(
        base_model=_base_model(options, path),
        revision=_text_or_none(options, "revision", path),
        rank=_rank(options, path),
        alpha=_alpha(options, path),
        use_rslora=_boolean(options, "use_rslora", path),
        target_modules=_target_modules(options, path),
        restricted=any(
            _is_set(options.get(key)) for key in ("exclude_modules", "layers_to_transform", "layers_pattern")
        ),
        fan_in_fan_out=_boolean(options, "fan_in_fan_out", path),
        task_type=_task_type(options, path),
        text=text,
    )


def render_config(
    base_model: str,
    layout: AdapterLayout,
    scaling: tuple[float, bool],
    task_type: str | None,
    *,
    revision: str | None = None,
) -> str:
    """Write the `adapter_config.json` of an adapter in a bank's layout.

    The text depends on the arguments alone, loads with `PeftConfig.from_pretrained`, and has what vLLM's
    `PEFTHelper` reads.

    Parameters
    ----------
    base_model, revision
        Of the bank.
    layout
        Gives r, target_modules and fan_in_fan_out.
    scaling
        lora_alpha and use_rslora of the bank.
    task_type
        As PEFT names it; None loads as a plain PeftModel.
    """
    alpha, use_rslora = scaling
    options = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": layout.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        # PEFT and vLLM declare an integer: 16 rather than 16.0.
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": layout.rank,
        "revision": revision,
        "target_modules": sorted(layout.target_modules),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": use_rslora,
    }
    return json.dumps(options, indent=2, sort_keys=True) + "\n"


def _read_text(path: Path) -> str:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise AdapterError(f"{path}: a file was expected, a folder or device found; give PEFT's own file")
        if found.st_size > _MAX_BYTES:
            raise AdapterError(f"{path}: at most {_MAX_BYTES} bytes were expected, {found.st_size} found")
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise AdapterError(
            f"{path}: no such file; an adapter is a folder that PEFT's save_pretrained wrote"
        ) from None
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from error
    except UnicodeDecodeError:
        raise AdapterError(f"{path}: not UTF-8 text; save the adapter again with PEFT") from None


def _is_set(value: Any) -> bool:
    """Whether an option has a value that can mean something: 0 can, so equality with False will not do."""
    return not (value is None or value is False or (isinstance(value, str | list | dict) and not value))


def _check_known(options: dict[str, Any], path: Path) -> None:
    in_use = [key for key in sorted(options) if _is_set(options[key])]
    for key in in_use:
        if key in _REFUSED:
            raise AdapterError(
                f"{path}: {key} was expected to be unset, {_shown(options, key)} found: {_REFUSED[key]}; "
                "train a plain LoRA"
            )
    unknown = [key for key in in_use if key not in _READ and key not in _HARMLESS]
    if unknown:
        shown = [f"{key}: {_shown(options, key)}" for key in unknown]
        raise AdapterError(
            f"{path}: unknown options are set ({listed(shown)}); they may change what the weights mean: "
            "unset them if they do not"
        )


def _check_initialisation(value: Any, path: Path) -> None:
    if value is None or isinstance(value, bool):
        return
    name = value.lower() if isinstance(value, str) else ""
    if name in _INIT_HARMLESS:
        return
    found = f"{path}: init_lora_weights {value!r}"
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


def _base_model(options: dict[str, Any], path: Path) -> str:
    name = _text_or_none(options, "base_model_name_or_path", path)
    if name is None:
        raise AdapterError(
            f"{path}: base_model_name_or_path was expected to name the base model, "
            f"{_shown(options, 'base_model_name_or_path')} found; set it to the model that was trained on"
        )
    return name


def _rank(options: dict[str, Any], path: Path) -> int:
    rank = options.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"{path}: r was expected to be a positive integer, {_shown(options, 'r')} found")
    return rank


def _alpha(options: dict[str, Any], path: Path) -> float:
    alpha = options.get("lora_alpha")
    if isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha < 2**64:
        return float(alpha)
    raise AdapterError(
        f"{path}: lora_alpha was expected to be a positive finite number, "
        f"{_shown(options, 'lora_alpha')} found"
    )


def _boolean(options: dict[str, Any], key: str, path: Path) -> bool:
    value = options.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise AdapterError(f"{path}: {key} was expected to be true or false, {_shown(options, key)} found")


def _text_or_none(options: dict[str, Any], key: str, path: Path) -> str | None:
    value = options.get(key)
    if value is None or (isinstance(value, str) and value.isprintable()):
        return value or None
    raise AdapterError(f"{path}: {key} was expected to be one line of text, {_shown(options, key)} found")


def _task_type(options: dict[str, Any], path: Path) -> str | None:
    value = options.get("task_type")
    if value is None or value in _TASK_TYPES:
        return value
    raise AdapterError(
        f"{path}: task_type was expected to be null or one of {', '.join(_TASK_TYPES)}, "
        f"{_shown(options, 'task_type')} found"
    )


def _target_modules(options: dict[str, Any], path: Path) -> tuple[str, ...] | str:
    value = options.get("target_modules")
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise AdapterError(
            f"{path}: target_modules was expected to be a list of module names or a pattern, "
            f"{_shown(options, 'target_modules')} found"
        )
    if not isinstance(value, str):
        return tuple(sorted(set(names)))
    try:
        re.compile(value)
    except re.error as error:
        raise AdapterError(f"{path}: target_modules {value!r} is no regular expression: {error}") from None
    return value


def _shown(options: dict[str, Any], key: str) -> str:
    """Show what was found for an option, in at most one short line."""
    if key not in options:
        return "nothing"
    value = options[key]
    if isinstance(value, dict | list) and len(value) > 0:
        return f"{json_type(value)} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
