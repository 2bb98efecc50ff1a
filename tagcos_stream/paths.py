"""Paths as users give them: `~` expanded, and told from ids of the model hub and from conditions.  No torch in here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tagcos_stream.types import UserError

ID_LISTS = (".txt", ".ids", ".csv", ".jsonl", ".parquet")  # endings of files that list examples
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expand `~` and `~user` at the beginning of a path.

    Parameters
    ----------
    path
        As the user gave it.

    Returns
    -------
    Path
        The same, with the home folder written out.

    Raises
    ------
    UserError
        There is no such user, or nobody knows the home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home = Path(path).parts[0]
        raise UserError(f"{path}: no home folder is known for {home}: give the whole path, or ./{path}") from error


def is_hub_id(ref: str) -> bool:
    """Whether a model that is no file or folder can be meant to be one of the hub.

    Parameters
    ----------
    ref
        The model as the user gave it.

    Returns
    -------
    bool
        Whether it has the form owner/name or name, and does not look like a path or a GGUF file.
    """
    return _HUB_ID.fullmatch(ref) is not None and not ref.endswith(".gguf")


def is_id_list(text: str) -> bool:
    """Whether a setting names a file that lists examples, and is not a condition.

    Parameters
    ----------
    text
        `exclude` or `include` as the user gave it.

    Returns
    -------
    bool
        Whether it ends like a file of ID_LISTS.
    """
    return Path(text).suffix in ID_LISTS
