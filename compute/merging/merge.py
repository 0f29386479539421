"""A base model with an adapter merged into its weights, as a folder that transformers loads. Knows no bank."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.errors import AdapterError, ConflictError, PlanError, listed, one_line
from bankdb.peft.config import CONFIG_NAME, plain_alpha, render_config
from bankdb.peft.folder import write_adapter_folder
from bankdb.peft.layout import modules_of
from bankdb.peft.weights import WEIGHTS_NAME, read_layout, write_safetensors
from bankdb.progress import Progress, SilentProgress, quiet_loggers
from compute.finetuning.resources import check_training_extra, model_size, usable_memory
from compute.generation.adapters import GivenAdapter, read_given, stated_base_model
from compute.generation.base_model import model_folder
from compute.generation.generate import load_model

if TYPE_CHECKING:
    import torch

_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    "chat_template*",
)


def check_merge(model: str | Path, out: Path, memory: int | None = None) -> Path:
    """Return the base model's folder; raise what would end `merge`, as far as it is known before there is an adapter.

    Raises
    ------
    ConflictError
        Something is at `out`.
    ParameterError, PlanError, BankError
        The extra torch is lacking, the model does not fit the memory in float32, or there is none.
    """
    check_training_extra()
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConflictError(
            f"{out}: a new folder was expected for the whole model, something found; choose another name"
        )
    folder = model_folder(model)
    # Twice: while the weights are written, there are those in float32 and those that are written.
    needed, there = 6 * model_size(folder).parameters, usable_memory(memory, "cpu")
    if needed > there:
        raise PlanError(
            f"{folder}: {needed / 2**30:.1f} GiB are needed to merge in float32, {there / 2**30:.1f} GiB found"
            "; merge on a larger machine, or use the adapter as it is"
        )
    return folder


def merge(
    write_adapter: Callable[[Path], Any],
    model: str | Path,
    out: Path,
    *,
    name: str,
    memory: int | None = None,
    progress: Progress | None = None,
) -> str:
    """Write a base model with an adapter merged into its weights; return the dtype that they are written in.

    Merged in float32 by PEFT, and rounded once, to the dtype that the base model's own configuration states. The folder
    appears whole or not at all.

    Parameters
    ----------
    write_adapter
        Writes the adapter's folder, as PEFT loads it, at the path it is given.
    model
        Folder or hub name of the base model.
    out
        The folder to make.
    name
        What the card calls the adapter.

    Raises
    ------
    AdapterError
        The adapter does not fit the model, or adapts an output layer that the model shares with its embeddings.
    """
    folder, shown = check_merge(model, out, memory), progress or SilentProgress()
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as place:
        adapter, whole = Path(place) / "adapter", Path(place) / "whole"
        write_adapter(adapter)
        shown.begin("merge", 1)
        dtype = _save_merged(folder, adapter, whole)
        for pattern in _TOKENIZER:
            for file in folder.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, whole / file.name)
        files = {path.name: partial(_moved, path) for path in sorted(whole.iterdir())}
        write_adapter_folder(out, files={**files, "README.md": _card(name, dtype).encode()})
        shown.end()
    return dtype


def merge_folder(
    adapter: str | Path,
    model: str | Path | None,
    out: Path,
    *,
    memory: int | None = None,
    progress: Progress | None = None,
) -> str:
    """Write a base model with the adapter of a folder merged into its weights, as `merge` does, whoever made it.

    Parameters
    ----------
    adapter
        A PEFT folder, such as `bank predict --out` writes.
    model
        Folder or hub name of the base model; None is the one that the adapter states.

    Raises
    ------
    AdapterError
        It is no plain LoRA adapter, or what `merge` refuses.
    """
    given, shown = read_given(adapter), progress or SilentProgress()
    for note in given.notes:
        shown.note(f"{adapter}: {note}")
    base = stated_base_model([given]) if model is None else model
    return merge(partial(_write_given, given), base, out, name=given.name, memory=memory, progress=progress)


def _write_given(given: GivenAdapter, folder: Path) -> None:
    """Write what was read and checked of an adapter, so that PEFT loads nothing else of its folder."""
    layout = given.layout
    alpha = (plain_alpha(given.scaling, layout.rank), False)
    config = render_config(given.base_model, layout, alpha, None)

    def weights(path: Path) -> None:
        write_safetensors(path, given.vector, layout, "float32")

    write_adapter_folder(folder, files={CONFIG_NAME: config.encode(), WEIGHTS_NAME: weights})


def _save_merged(folder: Path, adapter: Path, whole: Path) -> str:
    import torch

    model = load_model(folder, torch.float32)
    dtype = _own_dtype(model, folder)
    with quiet_loggers("transformers"):
        from peft import PeftModel

        try:
            adapted: Any = PeftModel.from_pretrained(model, str(adapter))
        except (ValueError, RuntimeError, KeyError) as error:
            raise AdapterError(
                f"{folder}: the adapter's own base model was expected, PEFT says: {one_line(error, 200)}; pass it with "
                "--model"
            ) from error
        _check_every_module(adapted, adapter, folder)
        _check_head(adapted, folder)
        merged = adapted.merge_and_unload()
        merged.to(dtype).save_pretrained(whole)
    return str(dtype).removeprefix("torch.")


def _own_dtype(model: Any, folder: Path) -> torch.dtype:
    """Return the dtype that the model's configuration states; without one that of its weights as they are loaded."""
    import torch
    from transformers import AutoConfig

    stated = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "dtype", None)
    return stated if isinstance(stated, torch.dtype) else next(model.parameters()).dtype


def _check_every_module(adapted: Any, adapter: Path, folder: Path) -> None:
    """Raise AdapterError unless PEFT adapts the very modules of the adapter: it leaves out what only one has."""
    from peft.tuners.lora import LoraLayer

    base = adapted.get_base_model()
    found = {name for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    expected = {module.name for module in modules_of(read_layout(adapter))}
    if found != expected:
        raise AdapterError(
            f"{folder}: the adapter's own base model was expected; only one of the two has "
            f"{listed(sorted(found ^ expected), 3)}; pass it with --model"
        )


def _check_head(adapted: Any, folder: Path) -> None:
    """Raise AdapterError where merging would change the embeddings, which no adapter here adapts."""
    base = adapted.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if hasattr(head, "base_layer") and head.base_layer.weight is getattr(embedding, "weight", None):
        raise AdapterError(
            f"{folder}: an output layer of its own was expected, it shares the embeddings' (tie_word_embeddings), "
            "and merging an adapter of lm_head would change these too; use the adapter as it is, or one without lm_head"
        )


def _moved(source: Path, path: Path) -> None:
    source.replace(path)


def _card(name: str, dtype: str) -> str:
    shown = shlex.quote(" ".join(name.split()).replace("`", "'"))
    return f"""# {shown}, merged

A base model with the LoRA adapter {shown} merged into its weights: in float32, then rounded to {dtype}. It has the
licence of its base model, and what is said of the adapter holds of it.

FOLDER is the folder of this file. With transformers: `AutoModelForCausalLM.from_pretrained("FOLDER")`.

With llama.cpp, by the script in its repository, one command makes a GGUF of it:

```sh
python convert_hf_to_gguf.py FOLDER --outfile merged.gguf
```

A prompt is the input of an example as it stands, without a chat template.
"""
