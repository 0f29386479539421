"""The names of an adapter's tensors: those that PEFT looks for, and those that wrappers of a model leave in a file.

A model that is wrapped while it is saved has its wrapper's segments in the names. PEFT then finds none of the
tensors and loads an adapter that does nothing, with a warning at most. What is certainly a wrapper's is left out
here; a name that is certainly not PEFT's, and cannot be made so for certain, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bankdb.errors import AdapterError, listed, one_line
from bankdb.peft.layout import PREFIX

# Segments that these put into names wherever they wrap a module; no model has such a name of its own.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
}
# What PEFT has inside of an adapted module: an adapter was put on another one's layers.
_INSIDE_AN_ADAPTER = frozenset({"base_layer", "lora_A", "lora_B", "modules_to_save", "original_module"})
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_COPY = ".base_layer.weight"
_SEGMENT = re.compile(r"[\w-]+")
_UNWRAP = "save it with save_pretrained of the PEFT model itself, not wrapped"
_SAVE_WITH_PEFT = "save it with PEFT's save_pretrained"
_MANGLED = (
    "PEFT before 0.17 removed an adapter's own name wherever it stood; save it from a later PEFT, or name the adapter "
    "'default'"
)
_ADVICE_OF_COPIES = (
    "load the adapter with PEFT and save it with save_pretrained(OUT, save_embedding_layers=False)"
)


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Names as PEFT looks for them, by the names in the file.

    Attributes
    ----------
    factors
        Name in the file to the module's path in the base model and the factor, 'A' or 'B'.
    left_out
        What was left out of the names, in words; empty where every name was PEFT's own.
    copies
        Name in the file of the base model's own weight of an adapted module to that module: no part of the adapter.
    """

    factors: Mapping[str, tuple[str, str]]
    left_out: tuple[str, ...]
    copies: Mapping[str, str] = field(default_factory=dict)

    def clean(self, name: str) -> str:
        """Return the name under which PEFT looks for a tensor of the file."""
        module, factor = self.factors[name]
        return factor_name(module, factor)


def factor_name(module: str, factor: str) -> str:
    """Return PEFT's name of a factor, 'A' or 'B', of a module of the base model."""
    return f"{PREFIX}{module}.lora_{factor}.weight"


def tensor_names(names: Sequence[str], path: Path) -> TensorNames:
    """Find the module and factor that each tensor of a file belongs to.

    Raises
    ------
    AdapterError
        A name is not that of a LoRA factor, or PEFT would not find it and what it stands for is not certain.
    """
    factors: dict[str, tuple[str, str]] = {}
    left_out: set[str] = set()
    adapters: dict[str | None, str] = {}
    copies: dict[str, str] = {}
    present = frozenset(names)
    for name in names:
        match = _FACTOR.fullmatch(name)
        if match is None and _is_copy(name, present):
            copies[name] = _module(name, name.removesuffix(_COPY), left_out, path)
            continue
        if match is None:
            raise _refused(name, _foreign_tensor(name, names), path)
        module = _module(name, match["module"], left_out, path)
        factors[name] = module, match["factor"]
        adapters.setdefault(match["adapter"], name)
    if len(adapters) > 1:
        shown = [f"{name!r}" for name in adapters.values()]
        raise AdapterError(
            f"{path}: tensors of one adapter were expected, {listed(shown, 3)} found (lora_A.NAME has the "
            "adapter's name in it); save each adapter alone: save_pretrained(FOLDER, selected_adapters=[NAME])"
        )
    (adapter,) = adapters
    if adapter is not None:
        left_out.add(f"the adapter's name {one_line(adapter, 40)!r}")
    _check_one_each(factors, path)
    return TensorNames(factors, tuple(sorted(left_out)), copies)


def _is_copy(name: str, present: frozenset[str]) -> bool:
    """Whether a tensor is the head's own weight, which PEFT saves along where the head is a target.

    It was not trained: PEFT trains the factors alone of a layer that it adapts.
    """
    module = name.removesuffix(_COPY)
    adapted = {f"{module}.lora_A.weight", f"{module}.lora_B.weight"} <= present
    return name.endswith(f".lm_head{_COPY}") and adapted


def _module(name: str, text: str, left_out: set[str], path: Path) -> str:
    """Return a module's path in the base model, without what wrappers put into it."""
    segments = []
    for segment in text.split("."):
        if segment in _WRAPPERS:
            left_out.add(f"{segment} ({_WRAPPERS[segment]})")
        else:
            segments.append(segment)
    while segments[:1] == ["module"]:
        left_out.add("module (data parallelism)")
        del segments[0]
    if segments[:2] != ["base_model", "model"]:
        raise _refused(
            name,
            f"it does not begin with {PREFIX}; {_MANGLED if segments[:1] == ['base_model'] else _SAVE_WITH_PEFT}",
            path,
        )
    del segments[:2]
    while segments[:2] == ["base_model", "model"]:
        if segments[2:3] == ["layers"]:
            # The language model of a class of its own, or a model without its head that was wrapped twice.
            raise _refused(
                name, f"a second base_model.model may be a wrapper's or the model's own; {_UNWRAP}", path
            )
        left_out.add("a second base_model.model (get_peft_model twice)")
        del segments[:2]
    _check_segments(name, segments, path)
    return ".".join(segments)


def _check_segments(name: str, segments: Sequence[str], path: Path) -> None:
    if not segments or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise _refused(name, f"it names no module; {_UNWRAP}", path)
    for segment in segments:
        if segment in _INSIDE_AN_ADAPTER:
            raise _refused(
                name,
                f"{segment!r} says that it adapts another adapter's layer; merge that one into the base model "
                "(merge_and_unload) and train on the result, or train one adapter",
                path,
            )
        if re.match(r"\d+\D", segment):
            raise _refused(name, f"{segment!r} is no layer's number; {_MANGLED}", path)
        if segment.startswith("_") or segment in {"module", "base_model", "pretrained_model"}:
            raise _refused(
                name, f"{segment!r} seems to be a wrapper's, and PEFT would not find it; {_UNWRAP}", path
            )


def _refused(name: str, why: str, path: Path) -> AdapterError:
    return AdapterError(
        f"{path}: LoRA factors ({PREFIX}MODULE.lora_A.weight, .lora_B.weight) alone were expected, "
        f"{one_line(repr(name), 140)} found: {why}"
    )


def _check_one_each(factors: Mapping[str, tuple[str, str]], path: Path) -> None:
    seen: dict[tuple[str, str], str] = {}
    for name, factor in factors.items():
        if factor in seen:
            raise AdapterError(
                f"{path}: {seen[factor]!r} and {name!r} were expected to be of two modules, but differ only in "
                f"wrappers' segments; {_UNWRAP}"
            )
        seen[factor] = name


def _foreign_tensor(name: str, names: Sequence[str]) -> str:
    """Say what a tensor that is no LoRA factor seems to be, and what to do."""
    if "lora_magnitude_vector" in name:
        return "a magnitude of DoRA; train a plain LoRA"
    if "lora_embedding_" in name:
        return "embeddings are adapted or saved whole; target linear modules alone"
    if name.endswith(_COPY):
        return _of_adapted_layer(name.removesuffix(_COPY), names)
    if name.endswith(".bias"):
        return "a bias; train with bias 'none' and without lora_bias"
    if re.search(r"\.lora_[AB]$", name):
        return _MANGLED
    if ".lora_" in name:
        return "a variant of LoRA; train a plain LoRA"
    if re.search(r"[._][AB]\.weight$", name):
        return _MANGLED
    if re.search(
        r"\.(embed_tokens|lm_head|wte|wpe|embed_in|embed_out|word_embeddings|embeddings)\.weight$", name
    ):
        return (
            "a weight of the model itself, saved along since its vocabulary was resized; to lose it, resize the base "
            f"model so, {_ADVICE_OF_COPIES}"
        )
    return f"a weight of the model itself; {_ADVICE_OF_COPIES}"


def _of_adapted_layer(module: str, names: Sequence[str]) -> str:
    if any(name.startswith(f"{module}.lora_embedding_") for name in names):
        return "embeddings are adapted or saved whole; target linear modules alone"
    return (
        f"a copy of the base model's own weight, which PEFT saves along where {module.rsplit('.', 1)[-1]} is a "
        f"target; {_ADVICE_OF_COPIES}"
    )
