"""How an adapter's named tensors lie in one flat float32 vector, a row of the bank."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError, BankFormatError, listed
from bankdb.strict_json import parse_object

PREFIX = "base_model.model."
A_SUFFIX = ".lora_A.weight"

B_SUFFIX = ".lora_B.weight"
_NAMED = 3  # how many names a message gives before it counts the rest


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of an adapter: its name in the file, its shape, and its place in the vector.

    `offset` counts elements, not bytes.
    """

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def columns(self) -> slice:
        """Where the tensor lies in the vector."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """The tensors that every adapter of a bank has, sorted by name, one after another.

    Two layouts are equal when their tensors and rank are: `target_modules` and `fan_in_fan_out` are only
    kept to be written into the configuration of predicted adapters. The tensors say by themselves which
    modules are adapted, and no LoRA weight depends on how the base model stores its own.

    Attributes
    ----------
    tensors
        Sorted by name; offsets without gaps from 0.
    rank
        r of every module.
    target_modules
        What PEFT needs as `target_modules` to adapt exactly these modules; sorted.
    fan_in_fan_out
        As in the adapter's configuration.
    """

    tensors: tuple[TensorSpec, ...]
    rank: int
    target_modules: tuple[str, ...] = field(compare=False)
    fan_in_fan_out: bool = field(compare=False)

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if not names or names != sorted(set(names)) or self.rank < 1:
            raise ValueError("a layout has tensors with unique, sorted names and a rank of at least 1")
        end = 0
        for spec in self.tensors:
            if spec.offset != end or spec.size < 1:
                raise ValueError(f"{spec.name}: tensors are not empty and follow each other without gaps")
            end += spec.size

    @classmethod
    def from_shapes(
        cls,
        shapes: Mapping[str, Sequence[int]],
        rank: int,
        target_modules: Iterable[str],
        fan_in_fan_out: bool = False,
    ) -> AdapterLayout:
        """Lay out tensors of the given names and shapes, in the order of their names."""
        specs = []
        offset = 0
        for name in sorted(shapes):
            spec = TensorSpec(name, tuple(shapes[name]), offset)
            specs.append(spec)
            offset += spec.size
        return cls(tuple(specs), rank, tuple(sorted(set(target_modules))), fan_in_fan_out)

    @property
    def size(self) -> int:
        """Number of parameters of an adapter, p."""
        last = self.tensors[-1]
        return last.offset + last.size

    def to_json(self) -> str:
        """Return the layout as JSON, the same text for equal layouts written by the same configuration."""
        content = {
            "rank": self.rank,
            "target_modules": self.target_modules,
            "fan_in_fan_out": self.fan_in_fan_out,
            "tensors": [[spec.name, spec.shape] for spec in self.tensors],
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> AdapterLayout:
        """Read what `to_json` wrote.

        Raises
        ------
        BankFormatError
            The text is not a layout.
        """
        try:
            content: dict[str, Any] = parse_object(text)
            pairs = [(str(name), [int(n) for n in shape]) for name, shape in content["tensors"]]
            if [name for name, _ in pairs] != sorted({name for name, _ in pairs}):
                raise ValueError("tensor names are not sorted, or not unique")
            return cls.from_shapes(
                dict(pairs),
                int(content["rank"]),
                [str(module) for module in content["target_modules"]],
                bool(content["fan_in_fan_out"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BankFormatError(
                f"the bank's adapter layout cannot be read: {error!s}; restore the database from a copy"
            ) from error

    def flatten(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Put named tensors into one new vector, converted to float32.

        Parameters
        ----------
        tensors
            Exactly the layout's names and shapes.

        Returns
        -------
        float32 vector of shape (p,).

        Raises
        ------
        AdapterError
            A tensor is missing, unexpected or of another shape.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        found = self._tensor_differences(shapes)
        if found:
            raise AdapterError(f"tensors do not fit the adapter layout: {'; '.join(found)}")
        vector = np.empty(self.size, dtype=np.float32)
        for spec in self.tensors:
            vector[spec.columns] = tensors[spec.name].reshape(-1)
        return vector

    def unflatten(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the named tensors of a vector of shape (p,), as views of it.

        Raises
        ------
        AdapterError
            The vector is of another shape.
        """
        if vector.shape != (self.size,):
            raise AdapterError(
                f"a vector of shape ({self.size},) was expected by the adapter layout, {vector.shape} found"
            )
        return {spec.name: vector[spec.columns].reshape(spec.shape) for spec in self.tensors}

    def b_segments(self) -> tuple[tuple[int, int], ...]:
        """Half-open column ranges that hold B factors, adjacent ones merged, ascending.

        An adapter of scaling s is brought to the bank's scaling S by multiplying these columns by s / S:
        the product `scaling * B @ A` stays what it was.
        """
        segments: list[tuple[int, int]] = []
        for spec in self.tensors:
            if not spec.name.endswith(B_SUFFIX):
                continue
            start, stop = spec.offset, spec.offset + spec.size
            if segments and segments[-1][1] == start:
                start = segments.pop()[0]
            segments.append((start, stop))
        return tuple(segments)

    def differences(self, other: AdapterLayout) -> list[str]:
        """Say how `other`, as found, differs from this layout, as expected; empty when they are equal."""
        shapes = {spec.name: spec.shape for spec in other.tensors}
        found = self._tensor_differences(shapes)
        if self.rank != other.rank:
            # Then every shape differs too: one line says it all.
            found = [line for line in found if not line.startswith("shape")]
            found.insert(0, f"rank {self.rank} expected, {other.rank} found")
        expected_modules, found_modules = _leaf_modules(self), _leaf_modules(other)
        if expected_modules != found_modules:
            found.insert(
                0,
                f"target modules {', '.join(expected_modules)} expected, {', '.join(found_modules)} found",
            )
        return found

    def elsewhere(self, other: AdapterLayout) -> tuple[str, str] | None:
        """Return where `other` has its layers and where this layout has them, if that is all in which they differ."""
        found, expected = _by_layer(other), _by_layer(self)
        if found is None or expected is None or found[1] != expected[1]:
            return None
        return found[0], expected[0]

    def _tensor_differences(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        expected = {spec.name: spec.shape for spec in self.tensors}
        missing = [name for name in expected if name not in shapes]
        unexpected = sorted(name for name in shapes if name not in expected)
        other = [
            f"{name} {expected[name]} expected, {shapes[name]} found"
            for name in expected
            if name in shapes and shapes[name] != expected[name]
        ]
        named = {"missing tensors": missing, "unexpected tensors": unexpected, "shape of": other}
        return [f"{what} {listed(lines, _NAMED)}" for what, lines in named.items() if lines]


def _leaf_modules(layout: AdapterLayout) -> list[str]:
    """Last parts of the names of the adapted modules: `...self_attn.q_proj.lora_A.weight` -> `q_proj`."""
    return sorted({spec.name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for spec in layout.tensors})


def _by_layer(layout: AdapterLayout) -> tuple[str, dict[str, tuple[int, ...]]] | None:
    """The one path before the layers' numbers, and shapes by what of the names is not it; None if there are more."""
    shapes, paths = {}, set()
    for spec in layout.tensors:
        numbered = re.match(r"(.+?\.)(\d+\..+)", spec.name)
        shapes[numbered[2] if numbered else spec.name] = spec.shape
        if numbered:
            paths.add(numbered[1])
    return (paths.pop(), shapes) if len(paths) == 1 and len(shapes) == len(layout.tensors) else None


@dataclass(frozen=True, slots=True)
class Module:
    """A module's name in the base model, and its two factors."""

    name: str
    a: TensorSpec
    b: TensorSpec

    @property
    def d_out(self) -> int:
        """Length of what the module gives."""
        return self.b.shape[0]

    @property
    def d_in(self) -> int:
        """Length of what the module takes."""
        return self.a.shape[1]

    @property
    def start(self) -> int:
        """Column of a row at which the first of the two factors begins."""
        return min(self.a.offset, self.b.offset)

    @property
    def stop(self) -> int:
        """Column after the last of the two factors."""
        return max(self.a.offset + self.a.size, self.b.offset + self.b.size)


def modules_of(layout: AdapterLayout) -> list[Module]:
    """Return the adapted modules, in the layout's order."""
    specs = {spec.name: spec for spec in layout.tensors}
    found = []
    for name, a in specs.items():
        if name.endswith(A_SUFFIX):
            path = name.removesuffix(A_SUFFIX)
            found.append(Module(path.removeprefix(PREFIX), a, specs[path + B_SUFFIX]))
    return found


def layout_of_rank(layout: AdapterLayout, rank: int) -> AdapterLayout:
    """Return the layout of the same modules with factors of another rank."""
    shapes = {}
    for module in modules_of(layout):
        shapes[module.a.name], shapes[module.b.name] = (rank, module.d_in), (module.d_out, rank)
    return AdapterLayout.from_shapes(shapes, rank, layout.target_modules, layout.fan_in_fan_out)
