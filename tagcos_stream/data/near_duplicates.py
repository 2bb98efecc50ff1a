"""Near-duplicates by MinHash and banding, on disk but for 48 bytes a row.

Sources: Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4. Signatures come from rensa (Rust), 36 times
as fast here as datasketch's. A row is compared with the first and with the previous row of each of its bands' buckets, so a row
that is dropped is at least `threshold` alike, as estimated, to an earlier row, which is kept or dropped for its own likeness to
a still earlier one. Exact duplicates are found elsewhere: they have one id.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from tagcos_stream.data.canonical import message_text
from tagcos_stream.data.shingles import find_words, runs
from tagcos_stream.types import UserError

PERMUTATIONS = 128
BANDS = 16  # of 8 values: two rows 0.8 alike meet in a bucket with probability 0.95, 0.9 alike 0.9999, 0.5 alike 0.06
SHINGLE = 3  # words
CHUNK = 16_384  # pairs that are compared at once
FOUND = pl.Schema(
    {
        "example_id": pl.String,
        "like_id": pl.String,
        "kept_id": pl.String,
        "likeness": pl.Float32,
        "reason": pl.String,
        "detail": pl.String,
    }
)


def near_duplicates(blocks: Iterable[pl.DataFrame], folder: Path, *, threshold: float = 0.8, seed: int = 1) -> pl.DataFrame:
    """Rows that are nearly an earlier one, in order.

    blocks: frames with `example_id` and `messages`, each example once, in the order in which the first is to be kept. folder:
    an empty one for 654 bytes of work files a row, deleted at the end. threshold: estimated Jaccard likeness of the sets of
    3-word runs, standard error 0.04. Rows under 3 words are never dropped. Returns a frame of FOUND; `detail` names the row that
    it is like and how much.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"near-duplicate threshold is {threshold}, must be above 0 and at most 1")
    n = _sign(blocks, folder, seed)
    try:
        return _match(folder, n, threshold)
    finally:
        for path in [folder / "signatures", folder / "ids", *(folder / f"band-{b}" for b in range(BANDS))]:
            path.unlink(missing_ok=True)


def peak_bytes(n: int) -> int:
    """Memory that N rows take: bucket hashes, their order and group starts, and the outcome, and a block of texts."""
    return 48 * n + (256 << 20)


def _sign(blocks: Iterable[pl.DataFrame], folder: Path, seed: int) -> int:
    """Signatures, bucket hashes and ids into files; returns the number of rows."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise UserError("near-duplicate removal needs the package rensa: pip install rensa") from None
    n = 0
    bands = [(folder / f"band-{b}").open("wb") for b in range(BANDS)]
    try:
        with (folder / "signatures").open("wb") as signatures, (folder / "ids").open("wb") as ids:
            for block in blocks:
                hashes, starts = runs(find_words(_texts(block)), SHINGLE)
                signed = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts.astype(np.uint64), PERMUTATIONS, seed)
                matrix = np.array(signed.to_rows(), np.uint32).reshape(block.height, PERMUTATIONS)
                empty = np.flatnonzero(np.diff(starts) == 0)
                matrix.tofile(signatures)
                ids.write(bytes.fromhex("".join(block["example_id"])))
                for b, out in enumerate(bands):
                    bucket = _bucket(matrix[:, b * 8 : b * 8 + 8])
                    # a row without a run gets a bucket to itself
                    bucket[empty] = (n + empty).astype(np.uint64)
                    bucket.tofile(out)
                n += block.height
    finally:
        for out in bands:
            out.close()
    return n


def _texts(block: pl.DataFrame) -> list[str]:
    return ["\n".join(message_text(m) for m in messages) for messages in block["messages"].to_list()]


def _bucket(values: np.ndarray) -> np.ndarray:
    out = np.zeros(len(values), np.uint64)
    for column in values.T.astype(np.uint64):
        out = (out ^ column) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


def _match(folder: Path, n: int, threshold: float) -> pl.DataFrame:
    if n == 0:
        return pl.DataFrame(schema=FOUND)
    signatures = np.memmap(folder / "signatures", np.uint32, "r", shape=(n, PERMUTATIONS))
    like = np.full(n, -1, np.int64)
    likeness = np.zeros(n, np.float32)
    for b in range(BANDS):
        bucket = np.fromfile(folder / f"band-{b}", np.uint64)
        order = np.argsort(bucket, kind="stable")  # rows of a bucket in their own order
        bucket = bucket[order]
        same = np.flatnonzero(bucket[1:] == bucket[:-1]) + 1
        heads = np.flatnonzero(np.concatenate(([True], bucket[1:] != bucket[:-1])))
        head = heads[np.searchsorted(heads, same, side="right") - 1]
        for others in (order[head], order[same - 1]):
            _compare(signatures, order[same], others, threshold, like, likeness)
    kept = like.copy()
    while (further := np.flatnonzero((kept >= 0) & (like[kept] >= 0))).size:
        kept[further] = like[kept[further]]
    ids = np.memmap(folder / "ids", np.uint8, "r", shape=(n, 16))
    rows = []
    for i in np.flatnonzero(like >= 0).tolist():
        own, other, stays = (ids[j].tobytes().hex() for j in (i, like[i], kept[i]))
        rows.append(
            (
                own,
                other,
                stays,
                float(likeness[i]),
                "near_duplicate",
                f"near_duplicate of {other}, likeness {likeness[i]:.2f}; kept: {stays}",
            )
        )
    return pl.DataFrame(rows, schema=FOUND, orient="row")


def _compare(
    signatures: np.ndarray, rows: np.ndarray, others: np.ndarray, threshold: float, like: np.ndarray, likeness: np.ndarray
) -> None:
    """Write `like` and `likeness` of rows not yet found whose signature agrees in the threshold's share of places."""
    open_ = np.flatnonzero(like[rows] < 0)
    for start in range(0, len(open_), CHUNK):
        part = open_[start : start + CHUNK]
        share = (signatures[rows[part]] == signatures[others[part]]).mean(axis=1, dtype=np.float32)
        good = share >= threshold
        like[rows[part[good]]] = others[part[good]]
        likeness[rows[part[good]]] = share[good]
