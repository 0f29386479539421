"""Where each factor of an adapter goes in a GGUF: its tensor's name, and the order of the rows of B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bankdb.errors import GgufError, ParameterError, listed
from bankdb.gguf.base_model import MERGE, BaseModel
from bankdb.gguf.order import Rows, neighbours, split_groups
from bankdb.peft.layout import AdapterLayout, Module, modules_of

# Tensors that llama.cpp multiplies with adapters in mind in every architecture here, as its package calls them.
_TENSORS = frozenset(
    (
        *("ATTN_Q", "ATTN_K", "ATTN_V", "ATTN_QKV", "ATTN_OUT", "FFN_GATE", "FFN_UP", "FFN_DOWN", "OUTPUT"),
        *("FFN_GATE_SHEXP", "FFN_UP_SHEXP", "FFN_DOWN_SHEXP"),
    )
)
_NAMED = 3
# Of InternLM2, whose q, k and v are one projection.
_ONE_PROJECTION = ".attention.wqkv"


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the base model, and the adapted module whose factors it takes.

    Attributes
    ----------
    tensor
        Its name in the base model's GGUF, `blk.0.attn_q.weight`.
    module
        The module in the adapter.
    rows
        Rows of the module's B in their order there; None for all of them as they are.
    """

    tensor: str
    module: Module
    rows: Rows | None = None

    @property
    def d_out(self) -> int:
        """Rows of the tensor."""
        return self.module.d_out if self.rows is None else int(self.rows.size)


def check_extra() -> None:
    """Raise ParameterError unless the package `gguf` is installed; imports nothing."""
    import importlib.util

    try:
        there = importlib.util.find_spec("gguf") is not None
    except ValueError:  # where a test has taken it away
        there = False
    if not there:
        raise ParameterError("expected the extra gguf: pip install 'lora-bank[gguf]'; found no package gguf")


def placed_modules(layout: AdapterLayout, base: BaseModel) -> list[Placed]:
    """Find where each module of an adapter goes, and hold it against the base model.

    Raises
    ------
    GgufError
        A module has no tensor that takes an adapter, or the base model has another shape.
    ParameterError
        The package gguf is not installed.
    """
    check_extra()
    names = _names(base)
    found = [one for module in modules_of(layout) for one in _placed(module, names, base)]
    seen: dict[str, str] = {}
    for one in found:
        if one.tensor in seen:
            raise GgufError(
                f"{one.module.name} and {seen[one.tensor]}: each was expected to have a tensor of its own, both are "
                f"{one.tensor}; {MERGE}"
            )
        seen[one.tensor] = one.module.name
    _check_shapes(found, base)
    return found


def _names(base: BaseModel) -> Any:
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    kind = kinds.get(base.architecture.name)
    if kind is None:
        raise GgufError(
            f"{base.source}: architecture {base.architecture.name} is not known to the package gguf that is installed; "
            "upgrade it: pip install -U gguf"
        )
    return gguf.get_tensor_name_map(kind, base.blocks)


def _placed(module: Module, names: Any, base: BaseModel) -> list[Placed]:
    path = _path(module.name)
    if path.endswith(_ONE_PROJECTION) and base.architecture.name == "internlm2":
        return _one_projection(module, path, base)
    kind, tensor = _tensor(module, path, names, base)
    if kind == "OUTPUT":
        _check_head(module, base)
    if not base.architecture.neighbours or kind not in ("ATTN_Q", "ATTN_K", "ATTN_QKV"):
        return [Placed(tensor, module)]
    if kind == "ATTN_QKV":
        raise GgufError(
            f"{module.name}: q and k of {base.architecture.name} were expected as projections of their own, one for "
            f"all found; {MERGE}"
        )
    heads = _heads(module, kind, base)
    return [Placed(tensor, module, neighbours(heads, module.d_out))]


def _path(name: str) -> str:
    """Return a module's path as the language model alone has it: of a model with eyes it is one part."""
    path = ".".join(part for part in name.split(".") if part != "language_model")
    return f"model.{path}" if path.startswith("layers.") else path


def _tensor(module: Module, path: str, names: Any, base: BaseModel) -> tuple[str, str]:
    found = names.get_type_and_name(f"{path}.weight", try_suffixes=(".weight",))
    if found is None or found[0].name not in _TENSORS or "experts" in path.split("."):
        raise GgufError(
            f"{module.name}: a module of {base.architecture.name} with {base.blocks} layers that takes an adapter in "
            f"llama.cpp was expected, this is none that is known to be one; {MERGE}"
        )
    return str(found[0].name), str(found[1])


def _check_head(module: Module, base: BaseModel) -> None:
    if not base.own_head:
        why = "is not said to be" if base.own_head is None else "is not"
        raise GgufError(
            f"{module.name}: an output layer of its own was expected, in {base.source} it {why} (tie_word_embeddings), "
            f"and llama.cpp then has no tensor for its adapter; {MERGE}"
        )


def _heads(module: Module, kind: str, base: BaseModel) -> int:
    """Return the number of heads in the rows of q or k, held against them."""
    rows, size = module.d_out, base.head_size
    heads = base.heads if kind == "ATTN_Q" else base.key_value_heads
    if heads is None and kind == "ATTN_K" and size is not None and rows % size == 0:
        heads = rows // size
    if heads is None or size is None:
        raise GgufError(
            f"{base.source}: num_attention_heads and head_dim, or hidden_size, were expected, to reorder the rows of "
            f"{module.name}, not found; give the base model's own with --base-gguf FILE"
        )
    if rows != heads * size or size % 2:
        raise GgufError(
            f"{module.name}: {heads} heads of {size} rows were expected by {base.source}, {rows} rows found; give the "
            "bank's own base model with --base-gguf FILE"
        )
    return heads


def _one_projection(module: Module, path: str, base: BaseModel) -> list[Placed]:
    """Take InternLM2's one projection of q, k and v apart."""
    heads, size, layer = base.heads, base.head_size, path.split(".")[-3]
    shared = base.key_value_heads or heads
    if heads is None or size is None or shared is None or heads % shared or size % 2 or not layer.isdecimal():
        raise GgufError(
            f"{base.source}: heads, key-value heads that divide them, and their size were expected, {heads}, {shared} "
            f"and {size} found; give the base model's own with --base-gguf FILE"
        )
    if module.d_out != (heads + 2 * shared) * size or int(layer) >= base.blocks:
        raise GgufError(
            f"{module.name}: {heads} + 2 x {shared} heads of {size} rows in one of {base.blocks} layers were expected "
            f"by {base.source}, {module.d_out} rows in layer {layer} found; give the bank's own base model"
        )
    orders = split_groups(heads, shared, module.d_out)
    return [
        Placed(f"blk.{int(layer)}.attn_{which}.weight", module, rows)
        for which, rows in zip("qkv", orders, strict=True)
    ]


def _check_shapes(found: Sequence[Placed], base: BaseModel) -> None:
    """Hold names and shapes against the base model's GGUF, where one was given."""
    if base.shapes is None:
        return
    missing = [one.tensor for one in found if one.tensor not in base.shapes]
    if missing:
        fused = any(name.endswith("attn_qkv.weight") for name in base.shapes)
        why = "; convert it without --fuse-qkv" if fused else "; give the GGUF of the bank's base model"
        raise GgufError(f"{base.source}: tensors {listed(missing, _NAMED)} were expected, not found{why}")
    for one in found:
        expected = one.d_out, one.module.d_in
        if base.shapes[one.tensor] != expected:
            raise GgufError(
                f"{base.source}: {one.tensor} of shape {expected} was expected, {base.shapes[one.tensor]} found; give "
                "the GGUF of the bank's base model"
            )
