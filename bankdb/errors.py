"""The one root of every error that the project raises on purpose.

A message says, in one line, what was expected, what was found, and what to do.
This module imports nothing of the project, so that every layer may import it.
"""

import re
from collections.abc import Sequence

# What turns an adapter of mlx_lm.lora into one of PEFT's.
FROM_MLX = (
    "to convert it, store lora_a.T as base_model.model.MODULE.lora_A.weight and lora_b.T as .lora_B.weight, and write "
    "PEFT's adapter_config.json with r = rank and lora_alpha = scale * rank"
)
# All but those characters of ASCII that are printed.
_UNUSUAL = re.compile(r"[^ -~]")


class BankError(Exception):
    """Root of all errors raised on purpose; its text is shown to users as it is."""


class BankNotFoundError(BankError):
    """There is no bank, or no entry of that name, where one was expected."""


class BankFormatError(BankError):
    """A bank's own files are not what its database says: damaged, foreign, or of another version."""


class DatabaseUnavailableError(BankError):
    """The server that holds the catalogue cannot be reached, or went away; what was done before is kept."""


class AdapterError(BankError):
    """An adapter folder is refused: unreadable, unsafe, or not of the bank's layout."""


class GgufError(BankError):
    """An adapter cannot be written for llama.cpp exactly, or what that needs of its base model is not known."""


class DatasetError(BankError):
    """A dataset is refused: unreadable, empty, or without the expected columns."""


class TokenizerError(BankError):
    """A tokenizer cannot be loaded, or is not the one that the bank was made with."""


class SourceError(BankError):
    """A folder, manifest or hub reference does not name pairs of adapter and dataset."""


class ConflictError(BankError):
    """What is to be written is already there, and differs."""


class ParameterError(BankError):
    """An option or argument is out of its range, or does not go with another."""


class PlanError(BankError):
    """The work does not fit the memory budget, however it is cut."""


class ComputeError(BankError):
    """A tile, panel or piece of a run failed; it is named in the message."""


class FileSystemError(BankError):
    """A file system lacks what a bank needs of it, as some network disks do, or may not be written."""


class PlatformError(BankError, ImportError):
    """This operating system has not what a bank needs."""


class ArrayStoreUnavailableError(BankError):
    """The store that holds a bank's arrays did not answer, or refused, also when it was asked again."""


class PublishError(BankError):
    """The hub did not take what was to be published; what it has of it is kept."""


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few names, and how many more there are; a very long one is cut."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(one_line(name, 500) if len(name) > 500 else name for name in names[:most]) + more


def one_line(found: object, most: int = 160) -> str:
    """What another library says, on one line of at most so many characters; an error without text by its kind."""
    text = " ".join(str(found).split())
    if not text and isinstance(found, BaseException):
        text = type(found).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str, keep: str = "") -> str:
    """The text with whatever a terminal or a page would obey, or not show, escaped.

    These are control characters, line and paragraph separators, overrides of the writing direction, halves of
    surrogate pairs, and characters that are not assigned; letters of any script and spaces stay as they are.

    Parameters
    ----------
    keep
        Characters that stay too, such as line breaks in text of several lines.
    """
    if text.isprintable():
        return text

    def shown(found: re.Match[str]) -> str:
        one = found[0]
        return one if one in keep or _shows(one) else ascii(one)[1:-1]

    # Of megabytes, such as a matrix as text, hardly any character is looked at by itself.
    return _UNUSUAL.sub(shown, text)


def _shows(character: str) -> bool:
    # Joiners belong to scripts and to emoji. Below U+00A0 the space is printable, and all else controls.
    return (
        character.isprintable()
        or character in "\u200c\u200d"
        or (character.isspace() and character >= "\u00a0" and character not in "\u2028\u2029")
    )
