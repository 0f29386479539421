"""`adapter_config.json` of PEFT's LoRA: what is read of it, what is refused, and how one is written.

`bankdb.peft.options` knows what the options mean.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bankdb.errors import FROM_MLX, AdapterError
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.options import check_initialisation, check_known, restating_patterns, shown
from bankdb.peft.targets import Selection
from bankdb.strict_json import parse_object

CONFIG_NAME = "adapter_config.json"
_MAX_BYTES = 16 * 2**20
_MAX_VALUES = 2_000_000
_LONGEST_TEXT = 4096  # of a path
_BASE_MODEL = "base_model_name_or_path"
_LFS_POINTER = "version https://git-lfs"
_TASK_TYPES = ("CAUSAL_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS")

# What a written configuration states of each adapter, and what it says of all.
_STATED = (
    *("base_model_name_or_path", "fan_in_fan_out", "lora_alpha", "r"),
    *("revision", "target_modules", "task_type", "use_rslora"),
)
_FIXED: Mapping[str, Any] = {
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "use_dora": False,
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an `adapter_config.json` says, as far as it bears on the weights.

    Attributes
    ----------
    base_model
        `base_model_name_or_path`.
    revision
        Of the base model; None where the file gives none, or the hub's own default, 'main'.
    rank, alpha, use_rslora
        r, lora_alpha and use_rslora: see `scaling`.
    selection
        Which modules are adapted.
    fan_in_fan_out
        How the base model stores its weights; no LoRA weight depends on it.
    task_type
        As PEFT names it, or None.
    text
        The whole file, or what it says with some options changed: see `restated`.
    notes
        What of it was assumed or changes nothing, a line each.
    """

    base_model: str
    revision: str | None
    rank: int
    alpha: float
    use_rslora: bool
    selection: Selection
    fan_in_fan_out: bool
    task_type: str | None
    text: str
    notes: tuple[str, ...] = ()

    @property
    def scaling(self) -> float:
        """Factor of B @ A: lora_alpha / r, or with rank-stabilised LoRA lora_alpha / sqrt(r)."""
        return scaling(self.alpha, self.rank, self.use_rslora)

    @property
    def target_modules(self) -> tuple[str, ...] | str:
        """Sorted names, or the one pattern."""
        return self.selection.target_modules

    @property
    def restricted(self) -> bool:
        """Whether `target_modules` alone selects more modules than are adapted."""
        return bool(self.selection.exclude_modules) or self.selection.layers is not None

    def targets(self, module: str) -> bool:
        """Whether a module is adapted by PEFT's rules, given its path in the base model."""
        return module in self.selection.selected([module])


def scaling(alpha: float, rank: int, use_rslora: bool) -> float:
    """Factor of B @ A: alpha / rank, or alpha / sqrt(rank) in rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def plain_alpha(scaling: float, rank: int) -> float:
    """Return the lora_alpha with which `alpha / rank` is a scaling: what is written says it in no other way.

    SGLang and llama.cpp's converter read no use_rslora.
    """
    alpha = scaling * rank
    near = (float(round(alpha)), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, 0))
    return next((one for one in near if one / rank == scaling), alpha)


def read_config(path: Path, assumed: str | None = None) -> AdapterConfig:
    """Read and check an `adapter_config.json`.

    Parameters
    ----------
    assumed
        The base model of a configuration that names none; None refuses it.

    Raises
    ------
    AdapterError
        The file cannot be read, is not what PEFT writes for LoRA, or sets an option that changes what the
        weights mean; the option is named.
    """
    return parse_config(_read_text(path), path, assumed)


def parse_config(text: str, path: Path, assumed: str | None = None) -> AdapterConfig:
    """Read and check the text of an `adapter_config.json`; messages name `path`. See `read_config`."""
    if text.startswith(_LFS_POINTER):
        raise AdapterError(
            f"{path}: PEFT's configuration was expected, a Git LFS pointer to it found; run 'git lfs pull' there"
        )
    try:
        options = parse_object(text, most=_MAX_VALUES)
    except ValueError as error:
        raise AdapterError(f"{path}: not a JSON object: {error}; save the adapter again with PEFT") from None
    if options.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path}: peft_type 'LORA' was expected, {shown(options, 'peft_type')} found; {_of_no_lora(options)}"
        )
    notes = _of_patterns(options)
    if assumed is not None and options.get(_BASE_MODEL) in (None, ""):
        options[_BASE_MODEL] = assumed
        text = _written(options)
        notes.append(f"no base model is named: taken for one of {assumed}, as --assume-base-model says")
    check_known(options, path)
    check_initialisation(options.get("init_lora_weights"), path)
    if options.get("bias", "none") != "none":
        raise AdapterError(
            f"{path}: bias 'none' was expected, {shown(options, 'bias')} found; train without biases"
        )
    return AdapterConfig(
        base_model=_base_model(options, path),
        revision=_revision(options, path),
        rank=_rank(options, path),
        alpha=_alpha(options, path),
        use_rslora=_boolean(options, "use_rslora", path),
        selection=_selection(options, path),
        fan_in_fan_out=_boolean(options, "fan_in_fan_out", path),
        task_type=_task_type(options, path),
        text=text,
        notes=tuple(notes),
    )


def _of_patterns(options: dict[str, Any]) -> list[str]:
    restating = restating_patterns(options)
    return [f"{' and '.join(restating)}: give every module what it has without"] if restating else []


def restated(config: AdapterConfig, **changes: Any) -> AdapterConfig:
    """Return a configuration with other values of options; all others, and its notes, stay.

    Parameters
    ----------
    changes
        By option; None removes it.
    """
    options = parse_object(config.text, most=_MAX_VALUES) | changes
    options = {key: value for key, value in options.items() if key not in changes or value is not None}
    return replace(parse_config(_written(options), Path(CONFIG_NAME)), notes=config.notes)


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
        "fan_in_fan_out": layout.fan_in_fan_out,
        # PEFT and vLLM declare an integer: 16 rather than 16.0.
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "r": layout.rank,
        "revision": revision,
        "target_modules": sorted(layout.target_modules),
        "task_type": task_type,
        "use_rslora": use_rslora,
    }
    return _written({**options, **_FIXED})


def is_rendered(text: str) -> bool:
    """Whether a configuration is, byte for byte, one that `render_config` writes: that of a predicted adapter.

    An adapter that is trained further has another one: PEFT writes all of its own options, in its own order.
    """
    try:
        options = parse_object(text, most=_MAX_VALUES)
    except ValueError:
        return False
    fixed = {key: options.get(key) for key in _FIXED}
    return options.keys() == {*_FIXED, *_STATED} and fixed == dict(_FIXED) and text == _written(options)


def _written(options: Mapping[str, Any]) -> str:
    return json.dumps(dict(options), indent=2, sort_keys=True) + "\n"


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


def _base_model(options: dict[str, Any], path: Path) -> str:
    name = _text_or_none(options, _BASE_MODEL, path)
    if name is None:
        raise AdapterError(
            f"{path}: {_BASE_MODEL} was expected to name the base model, {shown(options, _BASE_MODEL)} found; set it "
            "there to the model that was trained on, as `bank show` names it, or pass --assume-base-model to "
            "`bank ingest` if that is the bank's"
        )
    return name


def _rank(options: dict[str, Any], path: Path) -> int:
    rank = options.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank < 2**31:
        raise AdapterError(f"{path}: r was expected to be a positive integer, {shown(options, 'r')} found")
    return rank


def _alpha(options: dict[str, Any], path: Path) -> float:
    alpha = options.get("lora_alpha")
    if isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha < 2**64:
        return float(alpha)
    raise AdapterError(
        f"{path}: lora_alpha was expected to be a positive finite number, "
        f"{shown(options, 'lora_alpha')} found"
    )


def _boolean(options: dict[str, Any], key: str, path: Path) -> bool:
    value = options.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise AdapterError(f"{path}: {key} was expected to be true or false, {shown(options, key)} found")


def _text_or_none(options: dict[str, Any], key: str, path: Path) -> str | None:
    value = options.get(key)
    if value is None or (isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_TEXT):
        return value or None
    raise AdapterError(f"{path}: {key} was expected to be one line of text, {shown(options, key)} found")


def _task_type(options: dict[str, Any], path: Path) -> str | None:
    value = options.get("task_type")
    if value is None or value in _TASK_TYPES:
        return value
    raise AdapterError(
        f"{path}: task_type was expected to be null or one of {', '.join(_TASK_TYPES)}, "
        f"{shown(options, 'task_type')} found"
    )


def _selection(options: dict[str, Any], path: Path) -> Selection:
    value = options.get("layers_to_transform")
    layers = [value] if isinstance(value, int) else value or []
    if not isinstance(layers, list) or not all(type(n) is int for n in layers):
        raise AdapterError(
            f"{path}: layers_to_transform was expected to be a number or a list of them, "
            f"{shown(options, 'layers_to_transform')} found"
        )
    patterns = _names(options, "layers_pattern", path)
    return Selection(
        _target_modules(options, path),
        _names(options, "exclude_modules", path),
        tuple(layers) or None,
        (patterns,) if isinstance(patterns, str) else patterns,
    )


def _names(options: dict[str, Any], key: str, path: Path) -> tuple[str, ...] | str:
    value = options.get(key) or ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        raise AdapterError(
            f"{path}: {key} was expected to be a list of names or a pattern, {shown(options, key)} found"
        )
    return value if isinstance(value, str) else tuple(names)


def _target_modules(options: dict[str, Any], path: Path) -> tuple[str, ...] | str:
    value = options.get("target_modules")
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise AdapterError(
            f"{path}: target_modules was expected to be a list of module names or a pattern, "
            f"{shown(options, 'target_modules')} found"
        )
    return value if isinstance(value, str) else tuple(sorted(set(names)))


def _revision(options: dict[str, Any], path: Path) -> str | None:
    revision = _text_or_none(options, "revision", path)
    return None if revision == "main" else revision


def _of_no_lora(options: dict[str, Any]) -> str:
    if "fine_tune_type" in options or "lora_parameters" in options:
        return f"this is a configuration of MLX's; {FROM_MLX}"
    return "only LoRA adapters can be combined"
