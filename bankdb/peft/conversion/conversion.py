"""What brings an adapter to a bank's layout, where what it means is certain, and what is stored of it then.

A bank keeps the header and the configuration of what is stored. Of an adapter that is stored as it came these are its
file's own; of one that was converted they are those of the adapter that it became, and the header's metadata tell how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError
from bankdb.peft.config import AdapterConfig, plain_alpha, restated
from bankdb.peft.conversion.renamed_modules import matched
from bankdb.peft.conversion.source_layout import SourceLayout
from bankdb.peft.header import TensorEntry, written_header
from bankdb.peft.layout import AdapterLayout, layout_of_rank, modules_of
from bankdb.peft.targets import PatternError, Selection
from bankdb.records import Taking

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How an adapter's own layout becomes the one that it is stored in.

    Attributes
    ----------
    own, stored
        Both layouts; equal where nothing is done.
    renamed
        The names of its tensors in the stored layout by their own, where modules have other names; else empty.
    """

    own: AdapterLayout
    stored: AdapterLayout
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def of_other_rank(self) -> bool:
        """Whether it is padded or cut."""
        return self.own.rank != self.stored.rank

    @property
    def is_cut(self) -> bool:
        """Whether the stored values are computed, so that their last bits depend on the machine."""
        return self.own.rank > self.stored.rank

    def vector(self, vector: Vector) -> tuple[Vector, tuple[str, ...]]:
        """Return the vector in the stored layout, and what was done, a line each."""
        if self.own == self.stored:
            return vector, ()
        tensors = {self.renamed.get(name, name): one for name, one in self.own.unflatten(vector).items()}
        notes = [_RENAMED] if self.renamed else []
        if not self.of_other_rank:
            return self.stored.flatten(tensors), tuple(notes)
        from bankdb.peft.conversion.ranks import cut, padded

        before, now = self.own.rank, self.stored.rank
        if not self.is_cut:
            made = padded(tensors, self.stored)
            notes.append(
                f"rank {before} padded with zeros to {now}: the same product, and lora_alpha for the same scaling"
            )
            return self.stored.flatten(made), tuple(notes)
        made, lost = cut(tensors, self.stored)
        notes.append(
            f"rank {before} cut to {now} in delta space: {100 * lost.share:.2g}% of its energy is lost, "
            f"{100 * lost.most:.2g}% in {lost.module}"
        )
        return self.stored.flatten(made), tuple(notes)

    def config(self, config: AdapterConfig) -> AdapterConfig:
        """Return the configuration of what is stored: the same delta, by other names and another rank."""
        if self.own == self.stored:
            return config
        changes: dict[str, object] = {}
        if self.renamed and not _selects(config.selection, self.stored):
            changes |= {"target_modules": list(self.stored.target_modules)}
            changes |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
        if self.of_other_rank:
            alpha = plain_alpha(config.scaling, self.stored.rank)
            changes |= {
                "r": self.stored.rank,
                "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
                # As PEFT's own default, and what every program that loads adapters reads.
                "use_rslora": False,
                "alpha_pattern": None,
                "rank_pattern": None,
            }
        return restated(config, **changes) if changes else config

    def header(
        self, header: bytes, entries: Sequence[TensorEntry], source: SourceLayout, notes: Sequence[str]
    ) -> bytes:
        """Return the header of what is stored; the file's own where that is what it holds."""
        if self.own == self.stored and not source.names.copies:
            return header
        shapes = {spec.name: spec.shape for spec in self.stored.tensors}
        tensors = []
        for entry in entries:
            if entry.name not in source.names.copies:
                own = source.names.clean(entry.name)
                name = self.renamed.get(own, own)
                tensors.append((name, "F32" if self.is_cut else entry.dtype, shapes[name]))
        return written_header(header, tensors, "; ".join(notes))


_RENAMED = "modules renamed as transformers renamed them: the names are those of the bank's other adapters"


def conversion_to(
    expected: AdapterLayout | None, source: SourceLayout, taking: Taking, path: Path
) -> Conversion:
    """Return what brings an adapter to a layout; None expects any.

    Raises
    ------
    AdapterError
        It is another one, or of another rank that may not be adapted; the message says which.
    """
    own = source.layout
    if expected is None or expected == own:
        return Conversion(own, own)
    named, renamed = _renamed(own, expected)
    if named == expected:
        return Conversion(own, named, renamed)
    if named.rank != expected.rank:
        of_rank = layout_of_rank(named, expected.rank)
        if of_rank == expected:
            if not taking.adapt_rank:
                raise _of_other_rank(named.rank, expected.rank, path)
            return Conversion(own, of_rank, renamed)
    raise _of_other_layout(expected, own, path)


def _renamed(own: AdapterLayout, expected: AdapterLayout) -> tuple[AdapterLayout, dict[str, str]]:
    """Return a layout under the expected names of the same modules, and the tensors' names by their own."""
    here, there = ({module.name: module for module in modules_of(one)} for one in (own, expected))
    names = matched(here, there)
    if names is None or here.keys() == there.keys():
        return own, {}
    tensors, shapes = {}, {}
    for name, other in names.items():
        for of_own, of_other in ((here[name].a, there[other].a), (here[name].b, there[other].b)):
            tensors[of_own.name], shapes[of_other.name] = of_other.name, of_own.shape
    targets = [names.get(target, target) for target in own.target_modules]
    named = AdapterLayout.from_shapes(shapes, own.rank, targets, own.fan_in_fan_out)
    if not _selects(Selection(named.target_modules), named):
        named = AdapterLayout.from_shapes(shapes, own.rank, there, own.fan_in_fan_out)
    return named, tensors


def _selects(selection: Selection, layout: AdapterLayout) -> bool:
    modules = [module.name for module in modules_of(layout)]
    try:
        return selection.selected(modules) == frozenset(modules)
    except PatternError:
        return False


def _of_other_rank(found: int, expected: int, path: Path) -> AdapterError:
    how = (
        "padded with zeros, which changes nothing it does"
        if found < expected
        else "cut in delta space, and told what that loses"
    )
    return AdapterError(
        f"{path}: not of the bank's layout: rank {expected} expected, {found} found, and all else is alike; with "
        f"--adapt-rank it is taken, {how}; or put it in a bank of its own"
    )


def _of_other_layout(expected: AdapterLayout, found: AdapterLayout, path: Path) -> AdapterError:
    paths = expected.elsewhere(found)
    if paths is not None:
        return AdapterError(
            f"{path}: not of the bank's layout: its layers are {paths[0]!r}, the bank's {paths[1]!r}, and all else is "
            "alike, as where another version of transformers names an architecture's modules otherwise; if that is "
            "all, rename its tensors so (safetensors.numpy.load_file, save_file), and in target_modules where it "
            "stands"
        )
    return AdapterError(
        f"{path}: not of the bank's layout: {'; '.join(expected.differences(found))}; train it like the others, or put "
        "it in a bank of its own"
    )
