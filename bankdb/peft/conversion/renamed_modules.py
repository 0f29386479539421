"""Old and new names of one architecture's modules, as versions of transformers have them.

Models that see and hear had their language model in a class of its own, and have it beside the others since
transformers 4.52 (`_checkpoint_conversion_mapping` of the model classes there, `conversion_mapping.py` since 5.0). An
adapter that was trained under the one version has other names than one that was trained under the other, for the same
modules of the same base model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What stood before, and what stands there now. No model has modules under both.
_RENAMED = (
    # Qwen2-VL, Qwen2.5-VL and their kin; so is the language model alone of any of these.
    (r"model\.layers\.", "model.language_model.layers."),
    (r"visual\.", "model.visual."),
    # LLaVA, PaliGemma, Gemma 3, Mistral 3, InternVL, Llama 3.2 Vision and their kin.
    (r"language_model\.model\.", "model.language_model."),
    (r"language_model\.lm_head", "lm_head"),
    (r"(vision_tower|image_tower|video_tower|audio_tower|vision_model)\.", r"model.\1."),
    (r"multi_modal_projector\.", "model.multi_modal_projector."),
)


def present_name(module: str) -> str:
    """Return the name that a module of the base model has now, given that or the one that it had before.

    >>> present_name("language_model.model.layers.0.self_attn.q_proj")
    'model.language_model.layers.0.self_attn.q_proj'
    """
    for before, now in _RENAMED:
        match = re.match(before, module)
        if match is not None:
            return match.expand(now) + module[match.end() :]
    return module


def matched(found: Iterable[str], expected: Iterable[str]) -> dict[str, str] | None:
    """Return the expected names of modules by those that were found; None unless they are the same modules, all.

    Parameters
    ----------
    found, expected
        Paths of modules in the base model, each once.
    """
    names, wanted = list(found), list(expected)
    here = {present_name(name): name for name in names}
    there = {present_name(name): name for name in wanted}
    if not len(names) == len(here) == len(wanted) or here.keys() != there.keys():
        return None
    return {name: there[present] for present, name in here.items()}
