"""A small SentencePiece model, as older repositories have it: `tokenizer.model` and a configuration."""

from __future__ import annotations

import json
from pathlib import Path

SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def write_pieces(folder: Path, kind: str = "bpe", settings: dict[str, object] | None = None) -> Path:
    """Train a model on a few sentences."""
    import sentencepiece

    folder.mkdir(parents=True)
    text = folder / "text.txt"
    animals, places = ("cat", "dog", "bird", "horse"), ("tree", "house", "river")
    text.write_text("".join(f"the {a} sees the {b}\n" for a in animals for b in places))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=50,
        model_type=kind,
        minloglevel=2,
        user_defined_symbols=["  "],
        hard_vocab_limit=False,
    )
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS if settings is None else settings))
    return folder
