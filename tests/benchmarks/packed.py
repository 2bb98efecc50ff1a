"""One file of encoded examples, which a machine without the readers can load: numpy and safetensors only.

`python -m tests.benchmarks.pack` writes it, `python -m tests.benchmarks.gpu` reads it.  N examples, T tokens of all together.

| array | shape | content |
|---|---|---|
| tokens | (T,) uint16, or int32 where the vocabulary is larger | ids of all examples, one after the other |
| targets | (T / 8,) uint8 | one bit a token: whether its prediction counts, in numpy's order of `packbits` |
| offsets | (N + 1,) int64 | example i has tokens[offsets[i] : offsets[i + 1]] |
| ids | (N, 2) uint64 | example id: the two halves of its 32 hex digits |
| dataset | (N,) int16 | index into the names |
| heldout | (N,) uint8 | 1 for examples that are measured on and never trained on |

What else there is to know is JSON in the header, under `packed`: `Facts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.types import UserError

FORMAT = 1
PROBE = "Ünïcode, 1234 numbers,\n\ttabs and <|im_end|> marks."  # its ids tell one tokenizer from another


@dataclass(frozen=True)
class Facts:
    """What the arrays do not say."""

    model: str  # whose tokenizer and chat template encoded the examples
    datasets: tuple[str, ...]
    max_length: int
    probe: tuple[int, ...]  # ids of PROBE
    rejected: int  # rows that are no examples
    left_out: int  # examples without a target token within max_length
    format: int = FORMAT


@dataclass(frozen=True)
class Packed:
    facts: Facts
    tokens: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    dataset: np.ndarray
    heldout: np.ndarray

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of each example."""
        return np.diff(self.offsets)

    @property
    def target_tokens(self) -> np.ndarray:
        """(N,) int64."""
        bits = np.unpackbits(self.targets, count=int(self.offsets[-1]))
        return np.add.reduceat(bits, self.offsets[:-1], dtype=np.int64)

    @property
    def digest(self) -> str:
        """Hash of all arrays and facts."""
        whole = hashlib.blake2b(json.dumps(asdict(self.facts)).encode(), digest_size=8)
        for array in (self.tokens, self.targets, self.offsets, self.ids, self.dataset, self.heldout):
            whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()

    def encoded(self, rows: np.ndarray) -> list[Encoded]:
        """The examples `rows`, in their order."""
        found = []
        for begin, end in zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True):
            first = begin // 8
            bits = np.unpackbits(self.targets[first : -(-end // 8)])[begin - 8 * first : end - 8 * first]
            found.append(Encoded(self.tokens[begin:end].astype(np.int32), bits.astype(bool), False))
        return found

    def example_ids(self, rows: np.ndarray) -> list[str]:
        """Ids of 32 hex digits."""
        return [f"{high:016x}{low:016x}" for high, low in self.ids[rows].tolist()]


def pack(
    encoded: Sequence[Encoded], ids: Sequence[str], datasets: Sequence[str], heldout: float, vocabulary: int, **facts: Any
) -> Packed:
    """Pack N examples.

    Parameters
    ----------
    encoded
        Each with a target token.
    ids
        32 hex digits each.
    datasets
        Name of each.
    heldout
        Share of every dataset that is held out: those with the lowest ids, as in a root.
    vocabulary
        Number of different token ids.
    facts
        The remaining fields of `Facts`.

    Returns
    -------
    Packed
        In the order given.
    """
    names, dataset = np.unique(np.array(datasets), return_inverse=True)
    halves = np.array([(int(one[:16], 16), int(one[16:], 16)) for one in ids], np.uint64).reshape(-1, 2)
    out = np.zeros(len(encoded), np.uint8)
    for number in range(len(names)):
        mine = np.flatnonzero(dataset == number)
        out[mine[np.lexsort((halves[mine, 1], halves[mine, 0]))][: round(heldout * len(mine))]] = 1
    tokens = np.concatenate([one.input_ids for one in encoded]).astype(np.uint16 if vocabulary <= 1 << 16 else np.int32)
    return Packed(
        Facts(datasets=tuple(names.tolist()), **facts),
        tokens,
        np.packbits(np.concatenate([one.target for one in encoded])),
        np.cumsum([0, *map(len, encoded)]).astype(np.int64),
        halves,
        dataset.astype(np.int16),
        out,
    )


def write_packed(path: Path, packed: Packed) -> None:
    from safetensors.numpy import save_file

    arrays = {name: array for name, array in vars(packed).items() if name != "facts"}
    save_file(arrays, path, metadata={"packed": json.dumps(asdict(packed.facts))})


def read_packed(path: Path) -> Packed:
    """UserError where the file is none of `write_packed`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            given = json.loads((file.metadata() or {})["packed"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} is no packed file ({error}): `python -m tests.benchmarks.pack` makes one") from error
    if given.get("format") != FORMAT:
        raise UserError(f"{path} has format {given.get('format')}, this program reads {FORMAT}: pack the sources again")
    facts = Facts(**given | {"datasets": tuple(given["datasets"]), "probe": tuple(given["probe"])})
    return Packed(facts, **arrays)


def probe(tokenizer: Any) -> tuple[int, ...]:
    """Ids of PROBE under a tokenizer."""
    return tuple(tokenizer(PROBE, add_special_tokens=False)["input_ids"])


def require_same_tokenizer(packed: Packed, tokenizer: Any, model: str) -> None:
    """UserError unless the examples were packed with this tokenizer."""
    if probe(tokenizer) != packed.facts.probe:
        raise UserError(
            f"the packed file was made with the tokenizer of {packed.facts.model}, which differs from that of {model}: pack "
            "the sources again with this model, or give the other one"
        )
