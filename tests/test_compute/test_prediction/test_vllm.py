"""Real vLLM answers with predicted adapters as PEFT does: `make test-vllm`.

VLLM_PYTHON is a Python that has vLLM; MODEL and PAIRS are a base model and pairs of adapters for it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.runtimes.real_bank import (
    FEW,
    NEW,
    Answers,
    by_peft,
    named,
    predicted,
    prompts_of,
    run_python,
    some_names,
)

pytestmark = [pytest.mark.vllm, pytest.mark.torch]
SCRIPT = Path(__file__).parents[2] / "support" / "runtimes" / "vllm_answers.py"
# On the CPU, of one thread and 1 GiB of keys and values, without a word to anybody outside.
SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def by_vllm(adapters: list[Path | None], prompts: list[list[int]], place: Path) -> Answers:
    (place / "adapters.json").write_text(json.dumps([str(folder or "-") for folder in adapters]))
    (place / "prompts.json").write_text(json.dumps(prompts))
    arguments = (
        named("MODEL"),
        place / "adapters.json",
        place / "prompts.json",
        str(NEW),
        place / "vllm.npz",
    )
    run_python(named("VLLM_PYTHON"), SCRIPT, *arguments, env=SETTINGS)
    with np.load(place / "vllm.npz") as answers:
        return dict(answers)


def test_predicted_adapters_of_a_real_bank(tmp_path: Path) -> None:
    """Of a plain bank, of a rank-stabilised one, and of delta space; and the base model, which answers otherwise."""
    names = some_names()
    plain = predicted(tmp_path / "plain", names)[:FEW]
    stabilised = predicted(tmp_path / "rslora", names, use_rslora=True)[0]
    delta = predicted(tmp_path / "delta", names, "--space", "delta")[0]
    adapters = [*plain, stabilised, delta, None]
    prompts = prompts_of(names[:FEW])
    theirs = by_vllm(adapters, prompts, tmp_path)
    ours = [by_peft(Path(named("MODEL")), adapter, prompts) for adapter in adapters]
    farthest = 0.0
    for number, answers in enumerate(ours):
        for index in range(len(prompts)):
            assert theirs[f"tokens_{number}_{index}"].tolist() == answers[f"tokens_{index}"].tolist()
            distance = np.abs(theirs[f"chosen_{number}_{index}"] - answers[f"chosen_{index}"]).max()
            farthest = max(farthest, float(distance))
    print(f"log-probabilities: at most {farthest:.2g} from PEFT's")
    assert farthest < 0.01
    # The test sees whether an adapter was applied, and whether with its own scaling.
    for answers in ours[:-1]:
        assert np.abs(answers["logits_0"] - ours[-1]["logits_0"]).max() > 0.5
    assert np.abs(ours[0]["logits_0"] - ours[FEW]["logits_0"]).max() > 0.1
