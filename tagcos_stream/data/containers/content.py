"""What a file is by its first bytes, where it is not what its name promises."""

from __future__ import annotations

import codecs

HEAD = 4096  # bytes that tell what a file is
_UNPACK = "unpack it"
# first bytes -> what the file is; what to do, or the ending that it should have
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
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", ".arrow"),
    (b"FEA1", "a Feather file of version 1", "write it as .feather of version 2 or as .parquet"),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV or JSON"),
    (b"\x89HDF\r\n", "an HDF5 file", "export it as JSON"),
    (b"%PDF-", "a PDF", "extract its text"),
    (b"\x80\x04\x95", "a Python pickle", "write it as JSON; pickles are never opened"),
    (b"\x80\x05\x95", "a Python pickle", "write it as JSON; pickles are never opened"),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file", "git lfs pull"),
)
# likewise, in any case and behind white space
_PAGES = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML, as the errors of object stores are"),
)
_TAR = (257, b"ustar")
_BOMS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_SPACE = b" \t\r\n"
_UTF8_MARK = b"\xef\xbb\xbf"
_PACKED = {"gzip": ".gz", "zstd": ".zst"}


def other_content(head: bytes, within: str | None = None, *, table: bool = False) -> str | None:
    """What the file is and what to do, or None where its first bytes may be what its name says.

    Parameters
    ----------
    head
        First bytes, HEAD or fewer, unpacked where the file is packed.
    within
        The packing that was taken off, if any: gzip or zstd.
    table
        Whether the name says Parquet or Arrow, so that text is another kind, too; otherwise UTF-8 text.
    """
    place = f" within {within}" if within else ""
    for magic, kind, remedy in _MAGIC:
        if head.startswith(magic):
            return f"{kind}{place}: {_remedy(remedy, within)}"
    if head[_TAR[0] : _TAR[0] + len(_TAR[1])] == _TAR[1]:
        return f"a tar archive{place}: {_UNPACK}"
    begin = head.removeprefix(_UTF8_MARK).lstrip(_SPACE)[:64].lower()
    if kind := next((kind for page, kind in _PAGES if begin.startswith(page)), ""):
        return f"{kind}{place}: download the file itself"
    if encoding := _encoding(head):
        name = " and name it by what it holds, as .jsonl or .csv" if table else ""
        return f"text in {encoding}: convert it to UTF-8 (iconv -f {encoding} -t UTF-8){name}"
    return kind_of_text(head, within) if table else None


def _remedy(remedy: str, within: str | None) -> str:
    if remedy.startswith("."):
        return f"unpack it and name it {remedy}" if within else f"name it {remedy}, or set `format`"
    return f"{remedy} once" if within and remedy == _UNPACK else remedy


def kind_of_text(head: bytes, within: str | None = None) -> str | None:
    """What kind of UTF-8 text a file of another name is, and what to do, or None where it is no text; as `other_content`."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()  # the last character may be cut
    except UnicodeDecodeError:
        return None
    line, _, more = text.partition("\n")
    if not text or not all(c.isprintable() or c.isspace() for c in text):
        return None
    kinds = (
        ("JSON", ".jsonl", text[0] == "{"),
        ("a JSON list", ".json", text[0] == "["),
        ("tab-separated text", ".tsv", bool(more) and "\t" in line),
        ("CSV", ".csv", bool(more) and "," in line),
    )
    for kind, ending, fits in kinds:
        if fits:
            place, packing = (f" within {within}", _PACKED[within]) if within else ("", "")
            return f"{kind}{place}: name it {ending}{packing}, or set `format`"
    return f"text ({text[:40]!r}): download the file itself, or name it by what it holds"


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
