"""From a root's address to its files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

from storage.files.local import LocalFiles
from storage.files.object import ObjectFiles
from tagcos_stream.credentials import refuse_credentials
from tagcos_stream.types import UserError


def open_files(url: str) -> LocalFiles | ObjectFiles:
    """The files under a root's URL: what a worker in another process needs, without the catalog."""
    refuse_credentials(url)
    parsed = urlparse(url)
    if parsed.scheme in ("s3", "gs", "az", "abfs", "abfss", "s3a", "gcs"):
        return ObjectFiles(url)
    if parsed.scheme == "file":
        return LocalFiles(Path(unquote(parsed.path)).absolute())
    if "://" in url:
        raise UserError(f"root {url!r}: unknown kind of store {parsed.scheme!r}; use a path, or s3://, gs:// or az://")
    return LocalFiles(Path(url).expanduser().absolute())
