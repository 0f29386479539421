"""The model card of a predicted adapter, from its provenance record."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bankdb.errors import listed
from bankdb.strict_json import parse_object

PROVENANCE_NAME = "provenance.json"
"""The record of what a prediction was made from, beside its weights."""
_LISTED = 10  # sources in the table
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank from its default on
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True, slots=True)
class OnHub:
    """What the card of an adapter says more, or otherwise, where it is in a repository of the hub.

    Attributes
    ----------
    repo_id
        Of the adapter itself.
    licence, why
        Its identifier on the hub, and a sentence that tells whence it is; None where there is none to state.
    datasets
        Repositories of the datasets that its sources were trained on.
    """

    repo_id: str
    licence: str | None
    why: str
    datasets: tuple[str, ...] = ()


def model_card(provenance: Mapping[str, Any], on_hub: OnHub | None = None) -> str:
    """Write the README.md of a predicted adapter, with the Hugging Face hub's front matter.

    The text depends on the record alone.

    Parameters
    ----------
    provenance
        Needed: `name` (the dataset predicted for), `base_model`, `metric`, `approach`, and `sources`, a
        sequence of mappings with `name`, `coefficient`, and if known `source`, `revision` and `licence`.
        Used where given: `rank`, `dtype`, `base_model_revision`, `leave_one_out` (whether the dataset has
        an adapter in the bank, which was not used), `left_out` (names of adapters of the very same data),
        `parameters`, `versions` and `dataset` (mappings), `novelty`: how far the dataset is from all sources, see
        `compute.metrics.novelty.Novelty.record`, `gguf`: what is said of its file for llama.cpp, see
        `bankdb.gguf.export.GgufExport.facts`, `measured`: what it scored on test examples, see
        `compute.assessment.records.Assessment.measured`, and `finetuned`, what it was trained on and from. Other keys
        are ignored; of one that was trained from anything but a prediction there may be no sources.
    on_hub
        Where it is pushed to, if it is.

    Notes
    -----
    The effective number of sources is 1 / sum of squared coefficients. A licence is stated only if every
    source with a coefficient is known to have that one, or else as `on_hub` says.
    """
    used = [source for source in provenance["sources"] if source["coefficient"] != 0]
    used.sort(key=lambda source: (-abs(source["coefficient"]), source["name"]))
    sections = (
        _front_matter(provenance, used, on_hub),
        f"# {_plain(provenance['name'])}\n",
        _how_trained(provenance, used) if "finetuned" in provenance else _how_made(provenance, used),
        *_measured(provenance),
        *([_table(used)] if used else []),
        *([] if on_hub is None else [f"## Licence\n\n{_plain(on_hub.why)}.\n"]),
        how_to_load(provenance, on_hub),
    )
    return "\n".join(sections)


def front_matter(base_model: str, library: str, licence: str | None, **more: Any) -> str:
    """Return the front matter of the hub's model cards, for an adapter of a base model."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base_model,
        library_name=library,
        license=licence,
        tags=["base_model:adapter:" + base_model, "lora", "lora-bank"],
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _front_matter(
    provenance: Mapping[str, Any], used: Sequence[Mapping[str, Any]], on_hub: OnHub | None
) -> str:
    library = "gguf" if (provenance.get("gguf") or {}).get("alone") else "peft"
    if on_hub is not None:
        return front_matter(
            provenance["base_model"], library, on_hub.licence, **more_on_hub(on_hub), **_results(provenance)
        )
    licences = {str(source.get("licence") or "").lower() for source in used}
    licence = licences.pop() if len(licences) == 1 else ""
    # The hub takes its own identifiers alone; any other name would make the whole card invalid.
    known = _LICENCE_ID.fullmatch(licence) is not None
    return front_matter(provenance["base_model"], library, licence if known else None)


def more_on_hub(on_hub: OnHub) -> dict[str, Any]:
    """Return what the front matter of a card on the hub has more."""
    return {"pipeline_tag": "text-generation", "datasets": list(on_hub.datasets) or None}


def _results(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return measured figures as the hub's model-index has them, if there are any."""
    from huggingface_hub import EvalResult

    found = provenance.get("measured")
    if not found:
        return {}
    test = found["test"]
    figures = (("rouge", "Rouge-L", found["rouge_l"]), ("exact_match", "Exact match", found["exact_match"]))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=f"{test['name']}, {test['examples']} examples",
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in figures
    ]
    return {"model_name": str(provenance["name"]), "eval_results": results}


def _how_made(provenance: Mapping[str, Any], used: Sequence[Mapping[str, Any]]) -> str:
    effective = 1 / sum(source["coefficient"] ** 2 for source in used)
    negative = [source for source in used if source["coefficient"] < 0]
    left_out = (
        " The bank's own adapter for this dataset was left out." if provenance.get("leave_one_out") else ""
    )
    same = provenance.get("left_out") or []
    if same:
        left_out += " Left out of the bank, as adapters of the very same data: " + listed(
            [f"`{_code(name)}`" for name in same]
        )
        left_out += "."
    far = _far(provenance.get("novelty") or {})
    unmeasured = "" if provenance.get("measured") else " It has not been evaluated: do so before use."
    facts = {
        "Base model": provenance["base_model"],
        "Revision of the base model": provenance.get("base_model_revision"),
        "Metric": provenance["metric"],
        "Approach": provenance["approach"],
        **(provenance.get("parameters") or {}),
        "Sources with a positive coefficient": len(used) - len(negative),
        "Sources with a negative coefficient": len(negative) or None,
        "Effective number of sources": f"{effective:.2f}",
        "Rank": provenance.get("rank"),
        "Weights": provenance.get("dtype"),
        **(provenance.get("versions") or {}),
    }
    lines = [f"- {_plain(key)}: {_plain(value)}" for key, value in facts.items() if value is not None]
    return (
        f"A LoRA adapter for the dataset `{_code(provenance['name'])}` that was not trained: it is "
        f"{_combination(provenance, used)}.{left_out}{far}{unmeasured}\n\n" + "\n".join(lines) + "\n"
    )


def _combination(provenance: Mapping[str, Any], used: Sequence[Mapping[str, Any]]) -> str:
    """Tell what kind of a combination it is."""
    coefficients = (
        "whose coefficients come from distances between the datasets' token distributions (arXiv 2507.01806)"
    )
    below = sum(source["coefficient"] for source in used if source["coefficient"] < 0)
    signed = f"; some are negative, {below:.4g} in all, so that it is no convex combination" if below else ""
    merge = (provenance.get("parameters") or {}).get("merge")
    if merge:
        return f"made of trained adapters by the merge method `{_code(merge)}`, {coefficients}{signed}"
    kind = "a weighted sum" if below else "a convex combination"
    return f"{kind} of trained adapters, {coefficients}{signed}"


def _far(novelty: Mapping[str, Any]) -> str:
    """Tell that distances say little, where the dataset is far from all sources."""
    if not novelty.get("novel"):
        return ""
    if novelty["maximal"]:
        return (
            " The dataset shares no token with any source, so that its distances tell them apart by nothing."
        )
    share = novelty["farther_than"] / novelty["compared_with"]
    without = ", groups left out" if novelty["groups_left_out"] else ""
    return (
        f" The dataset is far from all sources: it is farther from the nearest, `{_code(novelty['nearest_source'])}`, "
        f"than {100 * share:.0f}% of {novelty['compared_with']} datasets of the bank are from theirs{without}. Its "
        "distances tell little of which adapters help."
    )


def _how_trained(provenance: Mapping[str, Any], used: Sequence[Mapping[str, Any]]) -> str:
    """Tell what training began with, on what it was, and what came of it by the examples held out."""
    trained = provenance["finetuned"]
    start, kept, held_out = trained["start"], trained["step_kept"], trained["held_out_losses"]
    begun = {
        "predicted": _combination(provenance, used),
        "zero": "an adapter that changes nothing",
    }.get(start["kind"], f"the adapter `{_code(start.get('name'))}`")
    numbers = len(trained["examples"]["training"]), len(trained["examples"]["held_out"])
    result = (
        f"Of {trained['steps']} steps on {numbers[0]} of its examples, step {kept} is kept: the loss on {numbers[1]} "
        f"examples held out fell from {held_out['0']:.4g} to {held_out[str(kept)]:.4g} nats a token."
    )
    if kept == 0:
        result = (
            f"None of {trained['steps']} training steps on {numbers[0]} of its examples lowered the loss on "
            f"{numbers[1]} examples held out, {held_out['0']:.4g} nats a token: this is the start as it was."
        )
    predicted = start["kind"] == "predicted"
    facts = {
        "Base model": provenance["base_model"],
        "Revision of the base model": provenance.get("base_model_revision"),
        "Metric of the start": provenance["metric"] if predicted else None,
        "Approach of the start": provenance["approach"] if predicted else None,
        **(provenance.get("parameters") or {}),
        "Optimizer": ", ".join(f"{key} {value}" for key, value in trained["optimizer"].items()),
        "Batch size": trained["batch_size"],
        "Seed": trained["seed"],
        "Base model trained on in": trained["base_model"]["dtype"],
        "Rank": provenance.get("rank"),
        "Weights": provenance.get("dtype"),
        **(provenance.get("versions") or {}),
        **trained["versions"],
    }
    far = _far(provenance.get("novelty") or {}) if predicted else ""
    return (
        f"A LoRA adapter for the dataset `{_code(provenance['name'])}`, trained from {begun}.{far} {result}\n\n"
        + _listed_facts(facts)
    )


def _listed_facts(facts: Mapping[str, Any]) -> str:
    return "".join(f"- {_plain(key)}: {_plain(value)}\n" for key, value in facts.items() if value is not None)


def _table(used: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| Source | Coefficient | Adapter | Licence |", "|---|---|---|---|"]
    for source in used[:_LISTED]:
        origin = source.get("source") or ""
        revision = f" @ {source['revision']}" if source.get("revision") else ""
        cells = (
            _plain(source["name"]),
            f"{source['coefficient']:.6g}",
            _plain(f"{origin}{revision}"),
            _plain(source.get("licence") or "not known"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    rest = len(used) - _LISTED
    more = f"\nand {rest} more; all are in the provenance record.\n" if rest > 0 else ""
    return "## Sources\n\n" + "\n".join(rows) + "\n" + more


def _measured(provenance: Mapping[str, Any]) -> list[str]:
    """Return the section of measured figures, if there are any."""
    found = provenance.get("measured")
    if not found:
        return []
    test = found["test"]
    rows = ["| | Rouge-L | Exact match | Rouge-L of this adapter, less its |", "|---|---|---|---|"]
    rows.append(f"| this adapter | {found['rouge_l']:.3f} | {found['exact_match']:.3f} | |")
    for other in found["compared_with"]:
        gain = other["rouge_l_difference"]
        bounds = "" if gain["low"] is None else f" [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        name, rouge, exact = _plain(other["name"]), other["rouge_l"], other["exact_match"]
        rows.append(f"| {name} | {rouge:.3f} | {exact:.3f} | {gain['estimate']:+.3f}{bounds} |")
    return [
        f"## Measured\n\nOn {test['examples']} test examples of `{_code(test['name'])}` (sha256 "
        f"`{_code(test['sha256'])[:16]}`), answered greedily in {_plain(found['dtype'])}; 95% intervals by a paired "
        "bootstrap over the examples.\n\n" + "\n".join(rows) + "\n"
    ]


def how_to_load(provenance: Mapping[str, Any], on_hub: OnHub | None = None) -> str:
    """Return the section that tells how to prompt and load an adapter, by its base model, rank and dataset."""
    base_model, gguf = str(provenance["base_model"]), provenance.get("gguf")
    quoted = _code(shlex.quote(base_model))
    named = _HUB_ID.fullmatch(base_model) is not None
    base = "base" if named else quoted
    download = f"hf download {quoted} --local-dir base\n" if named else ""
    prompts, option = _prompts(provenance)
    folder = "the folder of this file"
    if on_hub is not None:
        folder = f"where `hf download {on_hub.repo_id} --local-dir FOLDER` puts these files"
    parts = [f"## Use\n\nFOLDER is {folder}. {prompts}\n"]
    if not (gguf and gguf["alone"]):
        parts.append(_with_python(base_model, quoted, provenance.get("rank") or _VLLM_RANKS[0], option))
    convert = "" if gguf else f"python convert_lora_to_gguf.py FOLDER --base {base} --outfile adapter.gguf\n"
    place = "FOLDER/adapter.gguf" if gguf else "adapter.gguf"
    parts.append(
        f"""With llama.cpp, by the script{"" if gguf else "s"} in its repository:

```sh
{download}python convert_hf_to_gguf.py {base} --outfile base.gguf
{convert}llama-completion -m base.gguf --lora {place} -no-cnv -p "PROMPT"
```
"""
    )
    if gguf:
        beside = _code(gguf["base"] if str(gguf["base"]).endswith(".gguf") else "base.gguf")
        parts.append(
            f"""With Ollama, where `Modelfile` finds the base model, as `{beside}` in FOLDER:

```sh
ollama create predicted -f FOLDER/Modelfile
ollama run predicted "PROMPT"
```
"""
        )
    return "\n".join(parts)


def _prompts(provenance: Mapping[str, Any]) -> tuple[str, str]:
    """Tell what a prompt is, as the dataset was read, and what makes `bank generate` write it so."""
    rule = str((provenance.get("dataset") or {}).get("text_rule", "")).partition("; ")[2]
    read = parse_object(rule) if rule else {}
    if not str(read.get("form", "")).startswith("chat"):
        return (
            "A prompt is the input of an example as it stands, line\nbreaks at its end too, without a chat template.",
            "",
        )
    if read.get("template"):
        return (
            "The dataset holds chats: a prompt is the turns\nbefore an answer as the base model's chat template writes "
            "them, `add_generation_prompt` set.",
            " --chat",
        )
    return (
        "The dataset holds chats: a prompt is a line\n`role: text` for each turn before an answer, and then "
        "`assistant:`, without a chat template.",
        "",
    )


def _with_python(base_model: str, quoted: str, rank: int, option: str) -> str:
    """Tell how to load PEFT's two files."""
    named = _code(json.dumps(base_model))
    fitting = [limit for limit in _VLLM_RANKS if limit >= rank]
    limit = f" --max-lora-rank {fitting[0]}" if fitting and fitting[0] > _VLLM_RANKS[0] else ""
    return f"""With this project: `bank generate --adapter FOLDER --prompt PROMPT{option}`.

With transformers, where PEFT is installed:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({named})
model.load_adapter("FOLDER")
tokenizer = AutoTokenizer.from_pretrained({named})
ids = tokenizer("PROMPT", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))
```

With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base_model = AutoModelForCausalLM.from_pretrained({named})
model = PeftModel.from_pretrained(base_model, "FOLDER")
```

With vLLM:

```sh
vllm serve {quoted} --enable-lora{limit} --lora-modules predicted=FOLDER
```
"""


def _plain(value: Any) -> str:
    """Make any value one line of Markdown text that can stand in a table."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _code(value: Any) -> str:
    """Make any value one line that cannot end the code it stands in."""
    return " ".join(str(value).split()).replace("`", "'")
