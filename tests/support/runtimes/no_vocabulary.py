"""A base model's GGUF by llama.cpp's converter, without a vocabulary: prompts are token ids.

Arguments: llama.cpp's folder, the model's folder, the file to write. Tiny models have no tokenizer that it knows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    source, folder, out = sys.argv[1:]
    sys.path[:0] = [source, f"{source}/gguf-py"]
    import gguf
    import torch
    from conversion import ModelBase, get_model_class  # type: ignore[import-not-found]

    config = ModelBase.load_hparams(Path(folder), False)
    kind = get_model_class(config["architectures"][0])

    def no_vocabulary(self: Any) -> None:
        self.gguf_writer.add_tokenizer_model("no_vocab")
        self.gguf_writer.add_vocab_size(config["vocab_size"])

    made = type("NoVocabulary", (kind,), {"model_arch": kind.model_arch, "set_vocab": no_vocabulary})
    with torch.inference_mode():
        made(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out), hparams=config, eager=True).write()


main()
