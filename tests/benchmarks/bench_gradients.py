"""Gradient features against plain training, the released code's way, and the nearest libraries, all in one run.

    python -m tests.benchmarks.bench_gradients --data FOLDER/mix [--model FOLDER_OR_GGUF] [--peers PYTHON_WITH_BERGSON_AND_DATTRI]
    python -m tests.benchmarks.bench_gradients --parts gpu --device cuda            (random 1B and 7B models in bfloat16)

Ours and the plain pass are timed batch by batch in turn, so that what else the machine does falls on both. Parts: speed,
quality, memory, gpu.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagcos_stream.features.adapter import attach_adapter
from tagcos_stream.features.batching import padding_share, plan_batches
from tagcos_stream.features.chat import Encoded, NoTargets, encode
from tagcos_stream.features.gradients import GradientExtractor
from tagcos_stream.features.model import load_model
from tagcos_stream.features.projection import make_projection
from tagcos_stream.features.projection_quality import projection_quality
from tagcos_stream.features.warmup import _collate
from tests.models import random_checkpoint

DIM = 8192
clock = time.perf_counter
RELEASED_INTERVAL = 16  # gradients that the released code collects before it projects them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or .gguf; default: random weights in SmolLM2-135M's shape, which is as fast")
    parser.add_argument("--data", type=Path, help="folder with the mix's parquet files; default: random tokens")
    parser.add_argument("--peers", help="a Python in whose environment bergson and dattri are installed")
    parser.add_argument("--parts", nargs="+", default=["speed", "quality"], choices=["speed", "quality", "gpu"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 128])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for a machine with other work; use --threads 1",
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    global clock
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {options.clock} clock, "
        f"torch {torch.__version__}, D={DIM}, median of {options.repeats}"
    )
    if "speed" in options.parts:
        speed(options)
    if "quality" in options.parts:
        quality(options)
    if "gpu" in options.parts:
        gpu(options)


def speed(options: argparse.Namespace) -> None:
    for rank in options.ranks:
        base, encoded = setting(options)
        plan = plan_batches([len(e) for e in encoded], options.token_budget)
        batches = [[encoded[i] for i in batch] for batch in plan]
        tokens, targets = sum(len(e) for e in encoded), sum(e.n_target for e in encoded)
        print(
            f"\nr={rank}: {len(encoded)} examples, {tokens} tokens, {targets} targets, "
            f"padding {padding_share([len(e) for e in encoded], plan):.1%}"
        )
        peers: dict[str, float | str] = {}
        with tempfile.TemporaryDirectory() as folder:
            if options.peers:
                base.save_pretrained(folder)  # before the adapter is attached in place
            ex, _ = extractor(base, rank, ("adam",))
            ours, plain = alternate([ex.features, partial(plain_pass, ex)], batches, options.repeats)
            row("ours, adam", ours, len(encoded), tokens)
            row("(a) plain batched forward+backward", plain, len(encoded), tokens, ours)
            some = encoded[:: max(1, len(encoded) // 8)][:8]
            released, here = released_seconds(ex, some), statistics.median(total(ex.features, [some]) for _ in range(3))
            row("(b) batch size 1, dense Rademacher", released, len(some), sum(len(e) for e in some), here)
            for peer in ("bergson", "dattri") if options.peers else ():
                peers[peer] = peer_seconds(options, peer, folder, encoded, plan, rank)
        for peer, seconds in peers.items():
            if isinstance(seconds, str):
                print(f"  (c) {peer}: {seconds}")
            else:
                again = statistics.median(total(ex.features, batches) for _ in range(options.repeats))
                row(f"(c) {peer}", seconds, len(encoded), tokens, again)
        for variants in (("adam", "adam-delta"), ("adam", "adam-delta", "sgd", "sign")):
            several = GradientExtractor(ex.model, variants=variants, projection=ex.projection)
            several.use(random_checkpoint(ex.model))
            more, one = alternate([several.features, ex.features], batches[-2:], options.repeats)
            print(f"  {len(variants)} variants in one pass: {more / one:.2f} of the time of one")


def setting(options: argparse.Namespace) -> tuple[Any, list[Encoded]]:
    if options.model:
        loaded = load_model(options.model, device=options.device)
        base, tokenizer = loaded.model, loaded.tokenizer
    else:
        base, tokenizer = random_model(576, 30, 9, 3, 1536, 49152), None
    if options.data is None or tokenizer is None:
        from tests.models import random_encoded

        lengths = np.random.default_rng(0).lognormal(4.8, 0.6, options.examples).clip(16, options.max_length).astype(int)
        return base, random_encoded(lengths.tolist(), vocabulary=49000)
    import polars as pl

    files = sorted(options.data.glob("*.parquet"))
    each = -(-2 * options.examples // len(files))
    rows = [pl.read_parquet(file, columns=["messages"]).sample(each, seed=1)["messages"].to_list() for file in files]
    encoded: list[Encoded] = []
    for messages in (row[i] for i in range(each) for row in rows):  # the sources in turn
        try:
            encoded.append(encode(tokenizer, messages, max_length=options.max_length))
        except NoTargets:
            continue
    return base, encoded[: options.examples]


def random_model(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    dtype: Any = torch.float32,
    device: str = "cpu",
) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        tie_word_embeddings=hidden < 4096,
        max_position_embeddings=4096,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    model.config.use_cache = False
    return model


def extractor(base: Any, rank: int, variants: Sequence[str]) -> tuple[GradientExtractor, Any]:
    model = attach_adapter(base, rank=rank, alpha=4 * rank, seed=1)
    ex = GradientExtractor(model, variants=variants, projection=make_projection(dim=DIM, seed=0))
    checkpoint = random_checkpoint(model)
    ex.use(checkpoint)
    return ex, checkpoint


def plain_pass(ex: GradientExtractor, batch: list[Encoded]) -> None:
    """What transformers computes in a training step: loss from the labels, gradients of the LoRA weights, nothing else."""
    inputs = {name: tensor.to(ex.device) for name, tensor in _collate(batch).items()}
    ex.model.zero_grad()
    ex.model(**inputs, use_cache=False).loss.backward()


def released_seconds(ex: GradientExtractor, examples: list[Encoded]) -> float:
    """Seconds for `examples` as the released code takes them: one backward each, a flat gradient, Adam on it, a dense projection
    every 16.

    The dense matrix is drawn anew for every projection, in blocks of columns as trak's BasicProjector does it; one block is
    timed and multiplied by their number, and the cost shared over 16 examples.
    """
    size = sum(parameter.numel() for parameter in ex.parameters.values())
    started = clock()
    flat = torch.zeros(size)
    for example in examples:
        plain_pass(ex, [example])
        g = torch.cat([parameter.grad.reshape(-1) for parameter in ex.parameters.values() if parameter.grad is not None])
        flat = (0.9 * flat + 0.1 * g) / torch.sqrt(0.999 * flat.square() + 0.001 * g.square() + 1e-8)
    ex.model.zero_grad()
    passes = clock() - started
    gradients, columns = flat.expand(RELEASED_INTERVAL, size).contiguous(), max(1, min(100, 100_000_000 // size))
    matrix, generator = torch.empty(size, columns), torch.Generator().manual_seed(0)

    def block() -> None:
        matrix.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        gradients @ matrix

    block()
    return passes + timed(block) * (DIM / columns) / RELEASED_INTERVAL * len(examples)


def peer_seconds(
    options: argparse.Namespace, peer: str, folder: str, encoded: list[Encoded], plan: list[np.ndarray], rank: int
) -> float | str:
    file = Path(folder) / "examples.npz"
    np.savez(
        file,
        ids=np.concatenate([e.input_ids for e in encoded]),
        targets=np.concatenate([e.target for e in encoded]),
        lengths=[len(e) for e in encoded],
        order=np.concatenate(plan),
        batch_rows=[len(batch) for batch in plan],
    )
    script = Path(__file__).with_name("peers_gradients.py")
    command = [
        options.peers,
        str(script),
        peer,
        folder,
        str(file),
        str(rank),
        str(options.repeats),
        str(torch.get_num_threads()),
        options.clock,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"did not run: {done.stderr.strip().splitlines()[-1]}"
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def quality(options: argparse.Namespace) -> None:
    base, encoded = setting(options)
    ex, _ = extractor(base, 8, ("adam-delta",))
    print(
        "\nprojection quality, adam-delta gradients at r=8: error of inner products of unit rows, "
        "and share of exact nearest neighbours kept"
    )
    for line in projection_quality(ex, encoded[:24], dims=(1024, 2048, 4096, 8192, 16384), seeds=(0, 1)):
        print(
            f"  D={line.dim:>6} {line.kind:<12} rms error {line.error:.5f}  "
            f"nearest neighbour {line.nearest:.0%}  of 5 nearest {line.nearest_five:.0%}"
        )


def gpu(options: argparse.Namespace) -> None:
    """1B- and 7B-class architectures in bfloat16 with r=128 against plain forward and backward; needs a CUDA device for figures
    that mean something."""
    shapes = {"1B": (2048, 16, 32, 8, 8192, 128256), "7B": (4096, 32, 32, 32, 11008, 32000)}
    for name, shape in shapes.items():
        ex, _ = extractor(random_model(*shape, dtype=torch.bfloat16, device=options.device), 128, ("adam",))
        from tests.models import random_encoded

        lengths = np.random.default_rng(0).lognormal(5, 0.6, 256).clip(16, 1024).astype(int).tolist()
        encoded = random_encoded(lengths, vocabulary=shape[-1])
        batches = [[encoded[i] for i in batch] for batch in plan_batches(lengths, 8 * options.token_budget)]
        if options.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        ours, plain = alternate([ex.features, partial(plain_pass, ex)], batches, options.repeats)
        print(f"\n{name}, r=128, bfloat16 on {options.device}")
        row("ours, adam", ours, len(encoded), sum(lengths))
        row("plain batched forward+backward", plain, len(encoded), sum(lengths), ours)
        if options.device.startswith("cuda"):
            print(f"  peak device memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def alternate(runs: list[Callable[[list[Encoded]], Any]], batches: list[list[Encoded]], repeats: int) -> list[float]:
    """Median over repeats of each run's seconds for all batches, the runs taking turns at every batch."""
    for run in runs:
        run(batches[-1])
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        sums = [0.0] * len(runs)
        for batch in batches:
            for i, run in enumerate(runs):
                sums[i] += timed(lambda r=run, b=batch: r(b))  # type: ignore[misc]
        for i, value in enumerate(sums):
            seconds[i].append(value)
    return [statistics.median(values) for values in seconds]


def total(run: Callable[[list[Encoded]], Any], batches: list[list[Encoded]]) -> float:
    return sum(timed(lambda b=batch: run(b)) for batch in batches)  # type: ignore[misc]


def timed(run: Callable[[], Any]) -> float:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    started = clock()
    run()
    synchronise()
    return clock() - started


def row(name: str, seconds: float, examples: int, tokens: int, ours: float | None = None) -> None:
    ratio = f"  ours is {seconds / ours:6.2f} times as fast" if ours else ""
    print(f"  {name:<36} {examples / seconds:8.2f} examples/s {tokens / seconds:8.0f} tokens/s{ratio}", flush=True)


if __name__ == "__main__":
    main()
