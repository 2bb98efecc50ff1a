"""What the paths of files mean: the split that a file holds, its dataset, and which files of a folder hold no rows.

Known are the layouts of the Hugging Face hub (`data/train-00000-of-00002.parquet`, `train/0000.parquet`), of `save_to_disk`
(`data-00000-of-00001.arrow` next to `state.json`), and plain names (`train.jsonl`, `my-pool_train.jsonl`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath

# words that name a split in the names of files and folders, as `datasets` knows them
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(word for words in _WORDS.values() for word in words)})(?:[-._ 0-9]|$)", re.I)
# words behind a split's that say nothing of it; another one makes it a split of its own, such as train_sft
_PLAIN = r"(?:data|dataset|set|split|file|part|shard|chunk|all|full|final|clean|cleaned|filtered|processed|merged|v?\d+[a-z]?)"
SHARD = re.compile(r"^(?P<split>.+?)-\d{4,6}-of-\d{4,6}(?:-[0-9a-f]{16})?$")
BESIDE_SAVED = frozenset({"dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json"})
_NO_NAME = frozenset({"data", "default", "main"})  # folders of a hub layout that do not name a dataset


def parts_of(place: str, source: str) -> list[str]:
    """Return a file's folders and name below its source; of a source that is the file itself, its name."""
    below = place.removeprefix(source.rstrip("/")).strip("/") if place.startswith(source.rstrip("/") + "/") else ""
    return list(PurePosixPath(below or place.rsplit("/", 1)[-1]).parts)


def of_split(files: Sequence[tuple[Sequence[str], str]], split: str) -> list[bool]:
    """Find the files that hold a split.

    Parameters
    ----------
    files
        F of them: folders and name below the source, and the name without endings.
    split
        Its name.

    Returns
    -------
    list of bool
        (F,) which ones do. Where no file says of which split it is, all are train, as in `datasets`.
    """
    found = [is_of_split(parts, stem, split) for parts, stem in files]
    if split == "train" and not any(found) and not any(_says_split(parts, stem) for parts, stem in files):
        return [True] * len(files)
    return found


def _says_split(parts: Sequence[str], stem: str) -> bool:
    """Whether a file's name or a folder below the source names a split, or may name one in the hub's layout of shards."""
    shard = SHARD.match(stem)
    if shard and shard["split"] != "data" and "data" in parts[:-1]:
        return True
    return any(_SPLITS.search(name) for name in (*parts[:-1], stem))


def is_of_split(parts: Sequence[str], stem: str, split: str) -> bool:
    """Whether a file holds the split: by its name, else by a folder of that name.

    parts: its folders and name below the source; stem: the name without endings.
    """
    shard = SHARD.match(stem)
    name = shard["split"] if shard else stem
    named = _named(split)
    if named.search(name):
        return True
    if shard and name != "data":
        return False  # the name is that of another split
    return any(named.search(folder) for folder in parts[:-1])


@cache
def _named(split: str) -> re.Pattern[str]:
    """What the names of a split's files and folders contain: one of its words, apart from others."""
    words = "|".join(map(re.escape, _WORDS.get(split, (split,))))
    return re.compile(rf"(?:^|[-._ 0-9])(?:{words})(?:[-. 0-9]|$|_{_PLAIN}(?:[-._ ]|$))", re.I)


def is_shard(stem: str) -> bool:
    """Whether a file is one of several that hold a split, so that its name says nothing of the dataset."""
    return SHARD.match(stem) is not None


def dataset_above(folders: Sequence[str], saved_splits: bool) -> str | None:
    """The dataset's name by the folders above a shard, the last the nearest; None where they say nothing.

    saved_splits: the folder above the nearest is that of a saved DatasetDict, so that the nearest names a split.
    """
    names = [folder.partition("@")[0] for folder in (folders[:-1] if saved_splits else folders)]
    if "snapshots" in names:  # the hub's cache: datasets--owner--name/snapshots/revision
        return names[names.index("snapshots") - 1].rpartition("--")[2]
    while names and (names[-1] in _NO_NAME or not names[-1].strip("/.")):
        names.pop()
    return names[-1] if names else None
