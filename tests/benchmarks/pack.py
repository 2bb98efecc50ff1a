"""Sources as one file of encoded examples, for tests/benchmarks/gpu.py on a machine that has neither sources nor network.

    python -m tests.benchmarks.pack SOURCE... --model MODEL --out FILE [--max-length 512] [--heldout 0.02] [--save-model FOLDER]

Sources are read and encoded as by `tagcos run`: any format, exact duplicates once, the model's chat template and loss mask. Of
every dataset a share is held out. --save-model writes the model in bfloat16 with its tokenizer as a folder to carry along.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows.models import encode_row
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.model import load_max_positions, load_model, load_tokenizer
from tagcos_stream.library import read_pool
from tagcos_stream.types import UserError
from tests.benchmarks.packed import pack, probe, write_packed


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-length", type=int, default=512, help="tokens of an example at most")
    parser.add_argument("--heldout", type=float, default=0.02, help="share of every dataset")
    parser.add_argument("--save-model", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(words)
    try:
        run(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(chosen: argparse.Namespace) -> None:
    if not 0 <= chosen.heldout <= 0.5:
        raise UserError(f"--heldout {chosen.heldout}: give a share from 0 to 0.5")
    tokenizer = load_tokenizer(chosen.model)
    longest = min(chosen.max_length, load_max_positions(chosen.model))
    examples, rejects = read_pool(*chosen.sources)
    encoded, ids, datasets = list[Encoded](), list[str](), list[str]()
    for row in examples.iter_rows(named=True):
        one = encode_row(tokenizer, row, longest, reject_long=False)
        if isinstance(one, Encoded):
            encoded.append(one)
            ids.append(row["example_id"])
            datasets.append(row["dataset"] or "")
    if not encoded:
        raise UserError(f"none of {len(examples)} examples has a target token within {longest} tokens: raise --max-length")
    packed = pack(
        encoded,
        ids,
        datasets,
        chosen.heldout,
        max(len(tokenizer), 1 + max(int(one.input_ids.max()) for one in encoded)),
        model=Path(chosen.model).name,
        max_length=longest,
        probe=probe(tokenizer),
        rejected=len(rejects),
        left_out=len(examples) - len(encoded),
    )
    write_packed(chosen.out, packed)
    print(
        f"{chosen.out}: {len(packed)} examples of {len(packed.facts.datasets)} datasets, {int(packed.heldout.sum())} held out, "
        f"{len(packed.tokens)} tokens, {chosen.out.stat().st_size / 2**20:.1f} MiB; {len(rejects)} rows rejected, "
        f"{packed.facts.left_out} examples without a target token left out"
    )
    for number, name in enumerate(packed.facts.datasets):
        mine = packed.dataset == number
        print(f"  {name}: {int(mine.sum())} examples, {int(packed.lengths[mine].sum())} tokens")
    if chosen.save_model:
        loaded = load_model(chosen.model, device="cpu", dtype="bfloat16")
        loaded.model.save_pretrained(chosen.save_model)
        loaded.tokenizer.save_pretrained(chosen.save_model)
        print(f"{chosen.save_model}: {chosen.model} in bfloat16")


if __name__ == "__main__":
    main()
