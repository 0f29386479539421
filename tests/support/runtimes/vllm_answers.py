"""Log-probabilities and greedy tokens by real vLLM. Run by the Python that has vLLM, without this project.

Arguments: the base model's folder, a JSON file of adapters' folders ('-' is none), one of prompts as token ids, how
many tokens to add, and the .npz to write: `tokens_A_I`, those that adapter A adds to prompt I, and `chosen_A_I`, their
log-probabilities. (Of a prompt's own tokens vLLM 0.32 gives none with an adapter: issue 16668 of its project.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

    base, adapters, prompts, new, out = sys.argv[1:]
    folders, asked = json.loads(Path(adapters).read_text()), json.loads(Path(prompts).read_text())
    ranks = [
        json.loads((Path(folder) / "adapter_config.json").read_text())["r"]
        for folder in folders
        if folder != "-"
    ]
    model = LLM(
        model=base,
        dtype="float32",
        enable_lora=True,
        max_lora_rank=max(8, *ranks),
        max_loras=1,
        max_model_len=512,
        max_num_seqs=8,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=int(new), ignore_eos=True, logprobs=1)
    found = {}
    for number, folder in enumerate(folders):
        request = None if folder == "-" else LoRARequest(f"adapter{number}", number + 1, folder)
        done = model.generate([{"prompt_token_ids": ids} for ids in asked], sampling, lora_request=request)
        for index, answer in enumerate(done):
            (text,) = answer.outputs
            pairs = zip(text.token_ids, text.logprobs, strict=True)
            found[f"tokens_{number}_{index}"] = np.array(text.token_ids)
            found[f"chosen_{number}_{index}"] = np.array([places[token].logprob for token, places in pairs])
    np.savez(out, **found)


# vLLM starts processes that import this file again.
if __name__ == "__main__":
    main()
