"""Logits and greedy tokens by real llama.cpp. Run by the Python that has llama-cpp-python, without this project.

Arguments: the base model's GGUF, the adapter's or '-', a JSON file of prompts as token ids, how many tokens to add, and
the .npz to write: `logits_I`, shape (tokens, vocabulary), and `tokens_I` for each prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    from llama_cpp import GGML_TYPE_F32, Llama  # type: ignore[import-not-found]

    base, adapter, prompts, new, out = sys.argv[1:]
    model = Llama(
        model_path=base,
        lora_path=None if adapter == "-" else adapter,
        n_ctx=512,
        n_batch=512,
        n_threads=1,
        n_threads_batch=1,
        # Keys and values as they are; llama.cpp's default rounds them to 16 bits.
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        logits_all=True,
        use_mmap=False,
        verbose=False,
    )
    found = {}
    for number, ids in enumerate(json.loads(Path(prompts).read_text())):
        model.reset()
        model.eval(ids)
        found[f"logits_{number}"] = np.array(model.scores[: len(ids)], dtype=np.float32)
        added: list[int] = []
        for _ in range(int(new)):
            added.append(int(np.argmax(model.scores[len(ids) + len(added) - 1])))
            model.eval(added[-1:])
        found[f"tokens_{number}"] = np.array(added)
    np.savez(out, **found)


main()
