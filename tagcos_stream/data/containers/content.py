"""What a file is by its first bytes, where it is not the text that its name promises."""

from __future__ import annotations

_RENAME = "name it {0}, or set `format`"
_UNPACK = "unpack it"
# first bytes -> what the file is, what to do
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd", _UNPACK),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", "name another file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"BZh", "bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "xz", _UNPACK),
    (b"\x04\x22\x4d\x18", "LZ4", _UNPACK),
    (b"PAR1", "a Parquet file", _RENAME.format(".parquet")),
    (b"ARROW1", "an Arrow file", _RENAME.format(".arrow")),
    (b"\xff\xff\xff\xff", "an Arrow stream", _RENAME.format(".arrow")),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV or JSON"),
    (b"\x89HDF\r\n", "an HDF5 file", "export it as JSON"),
    (b"%PDF-", "a PDF", "extract its text"),
    (b"\x80\x04\x95", "a Python pickle", "write it as JSON; pickles are never opened"),
    (b"\x80\x05\x95", "a Python pickle", "write it as JSON; pickles are never opened"),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file", "git lfs pull"),
    (b"<!DOCTYPE html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
)
_TAR = (257, b"ustar")
_BOMS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def other_content(head: bytes, within: str | None = None) -> str | None:
    """What the file is and what to do, or None where its first bytes may be UTF-8 text.

    Parameters
    ----------
    head
        First bytes, unpacked where the file is packed.
    within
        The packing that was taken off, if any.
    """
    for magic, kind, remedy in _MAGIC:
        if head[: len(magic)].lower() == magic.lower() if magic[:1] == b"<" else head.startswith(magic):
            return f"{kind}{f' within {within}' if within else ''}: {remedy}{' once' if within and remedy == _UNPACK else ''}"
    if head[_TAR[0] : _TAR[0] + len(_TAR[1])] == _TAR[1]:
        return f"a tar archive{f' within {within}' if within else ''}: {_UNPACK}"
    encoding = _encoding(head)
    return f"text in {encoding}: convert it to UTF-8 (iconv -f {encoding} -t UTF-8)" if encoding else None


def _encoding(head: bytes) -> str | None:
    """An encoding with units of two or four bytes, by its mark or by the zeros in the first characters of ASCII."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    units = "".join("x" if byte else "0" for byte in head[:4])
    return {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE", "x000": "UTF-32LE", "000x": "UTF-32BE"}.get(units)


def bare_returns(head: bytes) -> str | None:
    """What to do about lines that end in carriage returns alone, or None where they do not."""
    if b"\n" in head or b"\r" not in head.strip(b" \t\r"):
        return None
    return "lines that end in bare carriage returns: convert them to line feeds (tr '\\r' '\\n')"
