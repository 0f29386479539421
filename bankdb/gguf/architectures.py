"""The architectures whose adapters are written exactly: what llama.cpp calls them, and how it keeps q and k.

transformers turns the first half of a head against its second; for most of its architectures llama.cpp does the same.
For the others it turns neighbours, and its converter reorders the rows of the two projections so that the numbers stay
what they were. An adapter's B has these very rows, and A has none of them.

Which is which: `convert_hf_to_gguf.py` and `llama_model_rope_type` of llama.cpp, as of the release that
`tests/test_bankdb/test_gguf/test_converter.py` names; the test asks its converter again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """What has to be known of an architecture.

    Attributes
    ----------
    name
        `general.architecture` of llama.cpp's files.
    neighbours
        Whether llama.cpp turns neighbours where transformers turns halves: rows of q and k change places.
    """

    name: str
    neighbours: bool = False


# By `architectures` of config.json.
ARCHITECTURES: Mapping[str, Architecture] = {
    **{
        name: Architecture(ours, neighbours=True)
        for name, ours in {
            "ArceeForCausalLM": "arcee",
            "DeepseekForCausalLM": "deepseek",
            "GraniteForCausalLM": "granite",
            "GraniteMoeForCausalLM": "granitemoe",
            "GraniteMoeSharedForCausalLM": "granitemoe",
            "IQuestCoderForCausalLM": "llama",
            "InternLM2ForCausalLM": "internlm2",
            "InternLM3ForCausalLM": "llama",
            "LLaMAForCausalLM": "llama",
            "LlamaForCausalLM": "llama",
            "MiniCPMForCausalLM": "minicpm",
            "Ministral3ForCausalLM": "mistral3",
            "MistralForCausalLM": "llama",
            "MixtralForCausalLM": "llama",
            "OLMoForCausalLM": "olmo",
            "OlmoForCausalLM": "olmo",
            "SmolLM3ForCausalLM": "smollm3",
        }.items()
    },
    **{
        name: Architecture(ours)
        for name, ours in {
            "ApertusForCausalLM": "apertus",
            "Cohere2ForCausalLM": "cohere2",
            "CohereForCausalLM": "command-r",
            "Ernie4_5ForCausalLM": "ernie4_5",
            "Exaone4ForCausalLM": "exaone4",
            "ExaoneForCausalLM": "exaone",
            "Gemma2ForCausalLM": "gemma2",
            "Gemma3ForCausalLM": "gemma3",
            "Gemma3ForConditionalGeneration": "gemma3",
            "GemmaForCausalLM": "gemma",
            "Glm4ForCausalLM": "glm4",
            "GlmForCausalLM": "chatglm",
            "GptOssForCausalLM": "gpt-oss",
            "HunYuanDenseV1ForCausalLM": "hunyuan-dense",
            "NemotronForCausalLM": "nemotron",
            "Olmo2ForCausalLM": "olmo2",
            "Olmo3ForCausalLM": "olmo2",
            "OlmoeForCausalLM": "olmoe",
            "OrionForCausalLM": "orion",
            "Phi3ForCausalLM": "phi3",
            "PhiForCausalLM": "phi2",
            "PhiMoEForCausalLM": "phimoe",
            "Qwen2ForCausalLM": "qwen2",
            "Qwen2MoeForCausalLM": "qwen2moe",
            "Qwen2VLForConditionalGeneration": "qwen2vl",
            "Qwen2_5_VLForConditionalGeneration": "qwen2vl",
            "Qwen3ForCausalLM": "qwen3",
            "Qwen3MoeForCausalLM": "qwen3moe",
            "Qwen3VLForConditionalGeneration": "qwen3vl",
            "SeedOssForCausalLM": "seed_oss",
            "StableLmForCausalLM": "stablelm",
            "Starcoder2ForCausalLM": "starcoder2",
        }.items()
    },
}


def by_llama_cpp(name: str) -> Architecture | None:
    """Return what llama.cpp calls so: of several architectures of one name all are kept alike."""
    return next((one for one in ARCHITECTURES.values() if one.name == name), None)
