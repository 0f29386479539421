"""The datasets of a library of adapters: a folder or a file for each in one repository."""

from __future__ import annotations

from collections.abc import Iterator

from bankdb.datasets.splits import is_data_file, stem_of
from bankdb.sources.hub_client import HubReference, Information

# Files that are called so are splits of the folder that they lie in, which is the dataset.
_SPLITS = ("train", "test", "valid", "validation", "val", "dev", "eval")


def dataset_parts(place: HubReference, information: Information) -> Iterator[tuple[str, str]]:
    """Yield the datasets in a repository, or in a folder of it: their names, and OWNER/NAME/PATH@COMMIT of each.

    A folder with a training split is a dataset, also one whose files are in its `data/`; a file on its own is one.
    """
    seen: set[str] = set()
    for name in information.below(place.folder):
        if not is_data_file(name):
            continue
        path = _dataset_of(name)
        if path and path not in seen:
            seen.add(path)
            whole = f"{place.folder}/{path}" if place.folder else path
            reference = HubReference(place.repo_id, information.revision, whole)
            yield stem_of(path) if is_data_file(path) else path.rpartition("/")[2], reference.text


def _dataset_of(name: str) -> str:
    """Return the path of the dataset that a data file is, or is a split of; empty for the repository itself."""
    folder = name.rpartition("/")[0]
    if not stem_of(name).lower().startswith(_SPLITS):
        return name
    return folder.removesuffix("/data") if folder != "data" else ""
