"""The layout of an adapter folder: its header's tensors, held against its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bankdb.errors import AdapterError, listed
from bankdb.peft.config import CONFIG_NAME, AdapterConfig
from bankdb.peft.header import TensorEntry
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.names import TensorNames, factor_name, tensor_names
from bankdb.peft.targets import PatternError


@dataclass(frozen=True, slots=True)
class SourceLayout:
    """How a file's tensors lie in a bank.

    Attributes
    ----------
    layout
        Under the names by which PEFT looks for them.
    names
        Of the file, to those.
    idle
        Names in target_modules of which the file has no tensors.
    """

    layout: AdapterLayout
    names: TensorNames
    idle: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        """Say what was left out or assumed, a line each."""
        notes = []
        if self.names.left_out:
            left_out = ", ".join(self.names.left_out)
            notes.append(f"left out of tensor names, since PEFT looks for none of it: {left_out}")
        if self.names.copies:
            copied = sorted({module.rsplit(".", 1)[-1] for module in self.names.copies.values()})
            notes.append(
                f"left out: the base model's own {listed(copied)}, which PEFT saves along with a target"
            )
        if self.idle:
            notes.append(
                f"target modules without tensors, taken as not in the base model: {listed(self.idle)}"
            )
        return tuple(notes)


def source_layout(entries: Sequence[TensorEntry], config: AdapterConfig, path: Path) -> SourceLayout:
    """Check names and shapes against the configuration, and lay the tensors out.

    Raises
    ------
    AdapterError
        The tensors are not those of an adapter with this configuration.
    """
    names = tensor_names([entry.name for entry in entries], path)
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    adapted = [entry for entry in entries if entry.name not in names.copies]
    for entry in adapted:
        module, factor = names.factors[entry.name]
        factors.setdefault(module, {})[factor] = entry.shape
    _check_pairs(factors, config.rank, path)
    _check_copies(entries, names, factors, path)
    modules = sorted(factors)
    try:
        selected = config.selection.selected(modules)
    except PatternError as error:
        raise AdapterError(f"{path.with_name(CONFIG_NAME)}: {error}") from None
    other = [module for module in modules if module not in selected]
    if other:
        # PEFT drops such tensors without a word: the file does not do what it seems to.
        raise AdapterError(
            f"{path}: unexpected tensors for {listed(other)}, which target_modules in {CONFIG_NAME} does not "
            f"select{_why_not_selected(config)}"
        )
    idle = config.selection.idle(modules)
    targets = modules
    if not isinstance(config.target_modules, str) and not config.restricted:
        targets = sorted(set(config.target_modules).difference(idle))
    shapes = {names.clean(entry.name): entry.shape for entry in adapted}
    layout = AdapterLayout.from_shapes(shapes, config.rank, targets, config.fan_in_fan_out)
    return SourceLayout(layout, names, tuple(idle))


def _why_not_selected(config: AdapterConfig) -> str:
    if config.restricted:
        return ", or its other options leave out; give the configuration that the adapter was trained with"
    return (
        "; give the configuration that the adapter was trained with, and where PEFT before 0.17 saved an adapter of "
        "another name than 'default', which it removed from modules' names too, save it from a later PEFT"
    )


def check_idle(source: SourceLayout, path: Path) -> None:
    """Raise AdapterError if a target module has no tensors: whether the base model has it, other adapters say."""
    if source.idle:
        raise AdapterError(
            f"{path}: missing tensors for {listed(source.idle)}, target modules in {CONFIG_NAME}; if the base model "
            "has no such module, remove it there, otherwise save the adapter again"
        )


def _check_copies(
    entries: Sequence[TensorEntry],
    names: TensorNames,
    factors: Mapping[str, Mapping[str, tuple[int, ...]]],
    path: Path,
) -> None:
    for entry in entries:
        if entry.name in names.copies:
            of_module = factors[names.copies[entry.name]]
            expected = (of_module["B"][0], of_module["A"][1])
            if entry.shape != expected:
                raise AdapterError(
                    f"{path}: {entry.name}, the base model's own weight, was expected to have the shape {expected} of "
                    f"the product of its factors, {entry.shape} found; save the adapter again with PEFT"
                )


def _check_pairs(factors: Mapping[str, Mapping[str, tuple[int, ...]]], rank: int, path: Path) -> None:
    for module, shapes in factors.items():
        if len(shapes) != 2:
            missing = factor_name(module, "A" if "B" in shapes else "B")
            raise AdapterError(
                f"{path}: missing tensor {missing}: each module was expected to have both factors; save the adapter "
                "again with PEFT"
            )
        for factor, position in (("A", 0), ("B", 1)):
            name, shape = factor_name(module, factor), shapes[factor]
            if len(shape) != 2:
                raise AdapterError(
                    f"{path}: {name} was expected to be a matrix, shape {shape} found; target linear modules alone"
                )
            if shape[position] != rank:
                raise AdapterError(
                    f"{path}: {name} was expected to have rank {rank} (r in {CONFIG_NAME}), shape {shape} found; "
                    "train every module with one rank"
                )
