"""Keys that lead out of a root, and links that lead out of a local one, are refused, with the path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.files.base import Files
from storage.files.local import LocalFiles
from storage.files.object import ObjectFiles
from storage.root import OWN, open_root
from tagcos_stream.types import UserError


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """A root beside a folder with one file."""
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "file").write_text("precious")
    made = LocalFiles(tmp_path / "root")
    made.write("spaces/a/file", b"mine")
    return made


@pytest.mark.parametrize(
    "key", ["../away/file", "spaces/../../away/file", "/etc/passwd", "spaces//file", "spaces/./x", "..", "a\0b"]
)
@pytest.mark.parametrize("kind", ["local", "object"])
def test_files__refuse_keys_that_are_not_below_the_root(files: LocalFiles, kind: str, key: str) -> None:
    checked: Files = files if kind == "local" else ObjectFiles("s3://bucket/root")  # refused before it connects
    _refused(checked, key)


def _refused(files: Files, key: str) -> None:
    for use in (
        files.size,
        files.read,
        files.expect,
        files.delete,
        lambda k: files.write(k, b"x"),
        lambda k: list(files.list(k)),
    ):
        with pytest.raises(UserError, match="which is not a file of the root"):
            use(key)
    with pytest.raises(UserError, match="which is not a file of the root"):
        files.read_into(key, np.zeros(1, np.uint8))


def test_local_files__follow_no_link_to_a_folder_outside(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "root" / "reports").symlink_to(tmp_path / "away")
    for use in (files.size, files.read, files.delete, lambda k: files.write(k, b"x")):
        with pytest.raises(UserError, match=r"reports leads out of the root, to .*away: nothing is read or written there"):
            use("reports/file")
    with pytest.raises(UserError, match="leads out of the root"):
        list(files.list("reports"))
    assert [path.name for path in (tmp_path / "away").iterdir()] == ["file"]


def test_local_files__a_link_to_a_file_outside_is_not_read_and_only_itself_replaced_or_removed(
    files: LocalFiles, tmp_path: Path
) -> None:
    link, target = tmp_path / "root" / "spaces" / "a" / "link", tmp_path / "away" / "file"
    link.symlink_to(target)
    for use in (files.size, files.read, lambda k: files.read_pieces(k, [(np.zeros(1, np.uint8), 0)])):
        with pytest.raises(UserError, match="leads out of the root"):
            use("spaces/a/link")
    files.write("spaces/a/link", b"new")
    assert (link.read_bytes(), target.read_text()) == (b"new", "precious")
    link.unlink()
    link.symlink_to(target)
    files.delete("spaces/a/link")
    assert (link.is_symlink(), target.read_text()) == (False, "precious")


def test_local_files__follow_links_within_the_root(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "root" / "other").symlink_to(tmp_path / "root" / "spaces")
    (tmp_path / "root" / "spaces" / "a" / "link").symlink_to("file")
    assert files.read("other/a/file") == files.read("spaces/a/link") == b"mine"
    assert files.size("spaces/a/link") == 4


@pytest.mark.parametrize("name", OWN)
def test_open_root__refuses_links_of_files_that_are_opened_by_name(tmp_path: Path, name: str) -> None:
    open_root(str(tmp_path / "root"))
    place = tmp_path / "root" / name
    place.unlink(missing_ok=True)
    (tmp_path / "away").write_text("precious")
    place.symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match=rf"{name} leads out of the root"):
        open_root(str(tmp_path / "root"), create=False)
    assert (tmp_path / "away").read_text() == "precious"
