"""The files of a tokenizer: where they are, and what is read before any of it is loaded."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.errors import TokenizerError, listed, one_line
from bankdb.progress import quiet_loggers
from bankdb.strict_json import parse_object

TOKENIZER_FILE = "tokenizer.json"
PIECES_FILE = "tokenizer.model"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# Files that transformers makes a tokenizer of, beside `tokenizer*`.
_VOCABULARIES = ("vocab*", "merges.txt", "*.model", "*.spm", "*.bpe", "*.tiktoken", "added_tokens.json")
_HUB_FILES = ["tokenizer*", *_VOCABULARIES, "special_tokens_map.json", "config.json", TEMPLATE_FILE]
_HUB_EXAMPLE = "such as HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
# Classes whose ids are the SentencePiece model's own, with <s> in front unless the configuration says otherwise.
_PIECE_CLASSES = ("LlamaTokenizer", "GemmaTokenizer")
_PIECE_MODELS = {"llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "gemma": "GemmaTokenizer"}
_MODEL_FILES = (PIECES_FILE, "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
# The largest that are known have 35 MB and 300 kB.
_LARGEST_FILE, _LARGEST_SETTINGS, _LARGEST_TEMPLATE = 256 << 20, 16 << 20, 1 << 20
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's folder. `name` is how messages call it, `settings` what its configuration files say."""

    name: str
    folder: Path
    settings: Mapping[str, Any]

    def has(self, file: str) -> bool:
        """Whether a file is there."""
        return (self.folder / file).is_file()

    @functools.cached_property
    def class_name(self) -> str | None:
        """The class that the files name, without `Fast`; None where they name none that is known to be enough."""
        stated = self.settings.get("tokenizer_class")
        if isinstance(stated, str):
            return stated.removesuffix("Fast")
        config = _settings(self.folder / "config.json", self.name)
        return _PIECE_MODELS.get(str(config.get("model_type")))

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The chat template, in a file of its own or in the configuration; of several, the one called default."""
        path = self.folder / TEMPLATE_FILE
        if path.is_file():
            if path.stat().st_size > _LARGEST_TEMPLATE:
                raise TokenizerError(
                    f"{path}: expected a chat template of at most {_LARGEST_TEMPLATE >> 10} KiB, found "
                    f"{path.stat().st_size >> 10}"
                )
            try:
                return path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"{path}: cannot be read ({one_line(error)}); copy it again") from error
        stated = self.settings.get("chat_template")
        if isinstance(stated, list):
            named = {item.get("name"): item.get("template") for item in stated if isinstance(item, dict)}
            stated = named.get("default")
        return stated if isinstance(stated, str) and stated.strip() else None

    @functools.cached_property
    def model_file(self) -> str | None:
        """The SentencePiece model among the files."""
        return next((name for name in _MODEL_FILES if self.has(name)), None)

    @property
    def pieces_alone(self) -> bool:
        """Whether the ids are those of the SentencePiece model itself."""
        if not self.has(PIECES_FILE) or self.class_name not in (None, *_PIECE_CLASSES):
            return False
        if more := _added(self.folder, self.settings, self.name):
            raise TokenizerError(
                f"{self.name}: {listed([ascii(token) for token in more], 3)} come on top of the SentencePiece model, "
                "which does not say how texts are split at them; pass a folder with the base model's own tokenizer.json"
            )
        return True


def tokenizer_files(source: str) -> TokenizerFiles:
    """Find a tokenizer's files: in a folder, or on the hub, from where they are downloaded.

    Raises
    ------
    TokenizerError
        There is no tokenizer, or one that consists of code of its own, which is never run.
    """
    folder = _folder(source)
    if not any(path.is_file() for pattern in ("tokenizer*", *_VOCABULARIES) for path in folder.glob(pattern)):
        raise TokenizerError(
            f"{source}: expected a tokenizer's files in the folder (tokenizer.json), found none"
        )
    for path in folder.glob("*"):
        if path.name in (TOKENIZER_FILE, *_MODEL_FILES) and path.stat().st_size > _LARGEST_FILE:
            raise TokenizerError(
                f"{path}: has {path.stat().st_size >> 20} MiB, expected a tokenizer of at most "
                f"{_LARGEST_FILE >> 20} MiB"
            )
    settings: dict[str, Any] = {}
    for name in reversed(SETTINGS_FILES):
        settings |= _settings(folder / name, source)
    files = TokenizerFiles(source, folder, settings)
    _check_own_code(files)
    return files


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise TokenizerError(f"{source}: is a file; pass the folder with tokenizer.json that it lies in")
    if not _HUB_NAME.fullmatch(source) or ".." in source:
        raise TokenizerError(
            f"{source}: no such folder; pass a folder with the base model's tokenizer.json, or its name on the hub, "
            f"{_HUB_EXAMPLE}"
        )
    return _from_hub(source)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    with quiet_loggers("huggingface_hub"):
        try:
            # The client itself reads the variable only when it is imported.
            endpoint = os.environ.get("HF_ENDPOINT") or None
            return Path(snapshot_download(name, allow_patterns=_HUB_FILES, endpoint=endpoint))
        except GatedRepoError as error:
            raise TokenizerError(
                f"{name}: is gated; accept its terms on its page on the hub and set HF_TOKEN, or pass a folder with "
                "tokenizer.json"
            ) from error
        except Exception as error:
            raise TokenizerError(
                f"{name}: no such folder here, and no tokenizer could be had from the hub by that name "
                f"({one_line(error, 100)}); pass a folder with tokenizer.json, or a name on the hub, {_HUB_EXAMPLE}"
            ) from error


def _settings(path: Path, name: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    try:
        if path.stat().st_size > _LARGEST_SETTINGS:
            raise ValueError(f"it has more than {_LARGEST_SETTINGS >> 20} MiB")
        return parse_object(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{name}: no tokenizer could be loaded, {path.name} cannot be read ({one_line(error)}); copy it again "
            "beside tokenizer.json"
        ) from error


def _check_own_code(files: TokenizerFiles) -> None:
    stated = files.settings.get("auto_map")
    own = stated.get("AutoTokenizer") if isinstance(stated, dict) else stated
    if not own:
        return
    named = next((part for part in own if part), own) if isinstance(own, list) else own
    advice = "pass a folder whose tokenizer.json is the whole tokenizer"
    if files.has(TOKENIZER_FILE):
        advice = (
            "if tokenizer.json alone is the whole tokenizer, pass a folder that holds it and nothing else"
        )
    raise TokenizerError(
        f"{files.name}: its tokenizer is code of its own (auto_map: {one_line(ascii(named), 60)}), which is never "
        f"run here; {advice}"
    )


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that a configuration names, by what they are for."""
    named = {key: settings.get(key) for key in _NAMED}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key)
        listed_there = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
        named |= {f"{key} {index}": token for index, token in enumerate(listed_there)}
    texts = {key: token.get("content") if isinstance(token, dict) else token for key, token in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _added(folder: Path, settings: Mapping[str, Any], name: str) -> list[str]:
    """Tokens that the files add to those of a SentencePiece model."""
    added = dict(_settings(folder / "added_tokens.json", name))
    decoder = settings.get("added_tokens_decoder")
    for index, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            added[token["content"]] = index
    if not added:
        return []
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / PIECES_FILE))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"{name}: no SentencePiece model could be loaded from its {PIECES_FILE} ({one_line(error)}); copy it again"
        ) from error
    own = {model.id_to_piece(index) for index in range(model.get_piece_size())}
    return sorted(set(added) - own)
