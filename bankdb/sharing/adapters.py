"""One adapter to a repository of its own on the hub: PEFT's files, and a card without a path of this machine."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from bankdb.errors import ConflictError, ParameterError, SourceError, listed, one_line
from bankdb.gguf.export import GGUF_NAME, MODELFILE_NAME
from bankdb.peft.config import CONFIG_NAME
from bankdb.peft.header import read_header
from bankdb.peft.model_card import PROVENANCE_NAME, OnHub, front_matter, how_to_load, model_card, more_on_hub
from bankdb.peft.weights import WEIGHTS_NAME
from bankdb.records import HUB_PREFIX, AdapterRecord, published
from bankdb.sharing.licences import forbids, strictest
from bankdb.sharing.places.hub import hub_errors, quiet_client, writing_client
from bankdb.sharing.privacy import (
    check_tells_nothing,
    own_places,
    shared_config,
    shared_header,
    without_paths,
)
from bankdb.sources.hub import parse_reference
from bankdb.strict_json import parse_object

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_NAME = "README.md"
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository for an adapter, looked at before the work whose result is to go there."""

    repo_id: str
    api: HfApi
    public: bool
    there: bool


def repository(text: str, *, public: bool, overwrite: bool) -> Repository:
    """Look whether an adapter can be pushed to `OWNER/NAME`.

    Raises
    ------
    ParameterError
        It is no such name, there is no token, or the hub is not to be asked.
    ConflictError
        Something else is there, or an adapter that is not to be replaced.
    PublishError
        The hub refused.
    """
    try:
        reference = parse_reference(text)
    except SourceError as error:
        raise ParameterError(f"--push-to: {error}") from None
    if reference.revision is not None:
        raise ParameterError(f"--push-to: goes to the main branch; leave out @{reference.revision}")
    repo_id = reference.repo_id
    api = writing_client(repo_id)
    with quiet_client(), hub_errors("model", repo_id):
        there = api.repo_exists(repo_id)
        files = set(api.list_repo_files(repo_id)) - {".gitattributes", CARD_NAME} if there else set()
    if files and not files & {CONFIG_NAME, GGUF_NAME}:
        raise ConflictError(
            f"model {repo_id}: holds {sorted(files)[0]!r} and no adapter; choose another name with --push-to"
        )
    if files and not overwrite:
        raise ConflictError(
            f"model {repo_id}: there is an adapter already; choose another name with --push-to, or pass --overwrite"
        )
    return Repository(repo_id, api, public, there)


def push_folder(to: Repository, folder: Path, stored: Mapping[str, Any] | None = None) -> str:
    """Push the adapter in a folder in one commit; what the hub has already of it is not sent again.

    Parameters
    ----------
    folder
        As this project writes it: PEFT's files, llama.cpp's, or both.
    stored
        What `stored_record` returned, of one that is in a bank and has no provenance record.

    Returns
    -------
    What is to be said of it: where it is, and under which licence.

    Raises
    ------
    ConflictError
        A source's licence forbids it; or a file would tell of this machine.
    PublishError
        The hub refused.
    """
    from huggingface_hub import CommitOperationAdd

    record = _provenance(folder) if stored is None else dict(stored)
    base_model = published(str(record["base_model"]))
    on_hub = _on_hub(to.repo_id, record)
    shared = without_paths(record) | {"base_model": base_model}
    card = model_card(shared, on_hub) if stored is None else _stored_card(shared, on_hub)
    files: dict[str, bytes | Path] = {CARD_NAME: card.encode()}
    if stored is None:
        files[PROVENANCE_NAME] = (json.dumps(shared, indent=2, ensure_ascii=False) + "\n").encode()
    files |= _peft_files(folder, base_model)
    files |= {name: folder / name for name in (GGUF_NAME, MODELFILE_NAME) if (folder / name).is_file()}
    checked = {name: data for name, data in files.items() if isinstance(data, bytes)}
    check_tells_nothing(checked, own_places(folder, ()))
    with quiet_client(), hub_errors("model", to.repo_id):
        if not to.there:
            to.api.create_repo(to.repo_id, exist_ok=True, private=not to.public)
        to.api.create_commit(
            to.repo_id,
            [CommitOperationAdd(name, data) for name, data in files.items()],
            commit_message="A LoRA adapter, by lora-bank",
        )
    made = "" if to.there else f" ({'public' if to.public else 'private'})"
    return f"pushed to {to.repo_id}{made}; licence {on_hub.why}"


def stored_record(record: AdapterRecord, base_model: str, text_rule: str) -> dict[str, Any]:
    """Return what the card of an adapter that a bank holds is made of; `text_rule` is that of its dataset."""
    return {
        "name": record.name,
        "base_model": base_model,
        "rank": record.rank,
        "dtype": record.dtype,
        "examples": record.examples,
        "dataset": {"text_rule": text_rule},
        "sources": [
            {
                "name": record.name,
                "coefficient": 1.0,
                "licence": record.licence,
                "source": published(record.source),
                "revision": record.revision,
                "dataset_source": published(record.dataset_source),
                "dataset_revision": record.dataset_revision,
            }
        ],
    }


def _on_hub(repo_id: str, record: Mapping[str, Any]) -> OnHub:
    used = [source for source in record["sources"] if source["coefficient"] != 0]
    if forbidden := [f"{one['name']} ({one['licence']})" for one in used if forbids(one.get("licence"))]:
        raise ConflictError(
            f"model {repo_id}: {listed(forbidden)}: the licence forbids passing on what is made of it; leave these "
            "adapters out of the bank, and predict it again"
        )
    named = {str(one.get("dataset_source") or "") for one in used}
    datasets = tuple(sorted(name.removeprefix(HUB_PREFIX) for name in named if name.startswith(HUB_PREFIX)))
    if not used:
        return OnHub(repo_id, None, "not stated: it was trained from nothing, on data of its maker's own")
    found = strictest(one.get("licence") for one in used)
    return OnHub(repo_id, found.identifier, f"{found.identifier}: {found.why}", datasets)


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE_NAME
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        record = parse_object(path.read_text(encoding="utf-8"))
        if not isinstance(record.get("sources"), list) or "base_model" not in record:
            raise ValueError("it names no sources or no base model")
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"{path}: expected the record of an adapter that was made here, found none ({one_line(error)}); push "
            "one that `bank predict`, `bank finetune` or `bank export` wrote"
        ) from error
    return record


def _peft_files(folder: Path, base_model: str) -> dict[str, bytes | Path]:
    """Return PEFT's two files, without this machine's paths; the weights by their path where nothing changes."""
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not weights.is_file():
        return {}
    with weights.open("rb") as file:
        header = read_header(file, weights.stat().st_size, weights)
        clean = shared_header(header)
        data = None if clean == header else struct.pack("<Q", len(clean)) + clean + file.read()
    text = shared_config(config.read_text(encoding="utf-8"), base_model)
    return {CONFIG_NAME: text.encode(), WEIGHTS_NAME: weights if data is None else data}


def _stored_card(record: Mapping[str, Any], on_hub: OnHub) -> str:
    (source,) = record["sources"]
    base_model = record["base_model"]
    came = {
        "Base model": base_model,
        "Rank": record["rank"],
        "Weights": record["dtype"],
        "Adapter from": _where(source["source"], source["revision"]),
        "Dataset": _where(source["dataset_source"], source["dataset_revision"]),
        "Examples": record["examples"],
    }
    facts = "".join(f"- {key}: {value}\n" for key, value in came.items())
    name = PurePath(str(record["name"])).name
    return "\n".join(
        (
            front_matter(base_model, "peft", on_hub.licence, **more_on_hub(on_hub)),
            f"# {name}\n",
            f"A LoRA adapter that was trained on the dataset below, as a bank of lora-bank holds it.\n\n{facts}",
            f"## Licence\n\n{on_hub.why}.\n",
            how_to_load(record, on_hub),
        )
    )


def _where(source: str, revision: str | None) -> str:
    return f"`{source.removeprefix(HUB_PREFIX)}`" + (f" @ {revision}" if revision else "")
