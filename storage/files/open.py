"""From a root's address to its files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

from storage.files.local import LocalFiles
from storage.files.object import ObjectFiles
from tagcos_stream.credentials import refuse_credentials
from tagcos_stream.paths import expanded
from tagcos_stream.types import UserError

STORES = ("s3", "gs", "az", "abfs", "abfss", "s3a", "gcs")


def local_folder(url: str) -> Path | None:
    """Folder of a root on this machine: a path, or the one that a file:// URL means; None for any other URL."""
    parsed = urlparse(url)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path)).absolute()
    return None if "://" in url or parsed.scheme in STORES else expanded(url).absolute()


def open_files(url: str) -> LocalFiles | ObjectFiles:
    """The files under a root's URL: what a worker in another process needs, without the catalog."""
    refuse_credentials(url)
    folder = local_folder(url)
    if folder is not None:
        return LocalFiles(folder)
    scheme = urlparse(url).scheme
    if scheme not in STORES:
        raise UserError(f"root {url!r}: unknown kind of store {scheme!r}; use a path, or s3://, gs:// or az://")
    return ObjectFiles(url)
