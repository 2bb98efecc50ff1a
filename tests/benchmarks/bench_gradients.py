"""Gradient features against plain training, the released code's way, and the nearest libraries, all in one run.

    python -m tests.benchmarks.bench_gradients --data FOLDER/mix [--model FOLDER_OR_GGUF] [--peers PYTHON_WITH_BERGSON_AND_DATTRI]

Ours and the plain pass are timed batch by batch in turn, ours and the libraries pass by pass, so that what else the machine does
falls on both. Parts: speed; quality of the projections; plans (padding, packing, order of checkpoints); training (that of `tagcos
evaluate`); memory (measured against the formulae). On a GPU, with models of random weights up to 7B: tests/benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tagcos_stream.gradients.batching import plan_batches
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import GradientExtractor
from tests.benchmarks import gradient_memory, gradient_plans, gradient_setting, gradient_training
from tests.benchmarks.gradient_setting import DIM, alternate, extractor, plain_pass, row, setting, timed, total
from tests.benchmarks.projection_quality import projection_quality
from tests.models import random_checkpoint
from tests.naive import padding_share

RELEASED_INTERVAL = 16  # gradients that the released code collects before it projects them
PARTS = ("speed", "quality", "plans", "training", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or .gguf; default: random weights in SmolLM2-135M's shape, which is as fast")
    parser.add_argument("--data", type=Path, help="folder with the mix's parquet files; default: random tokens")
    parser.add_argument("--peers", help="a Python in whose environment bergson and dattri are installed")
    parser.add_argument("--parts", nargs="+", default=["speed", "quality"], choices=PARTS)
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
    gradient_setting.use_clock(options.clock)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {options.clock} clock, "
        f"torch {torch.__version__}, D={DIM}, median of {options.repeats}",
        flush=True,
    )
    runs: dict[str, Callable[[argparse.Namespace], None]] = {
        "speed": speed,
        "quality": quality,
        "plans": gradient_plans.plans,
        "training": gradient_training.training,
        "memory": gradient_memory.report,
    }
    for part in options.parts:
        runs[part](options)


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
                times = beside_peer(options, peer, folder, encoded, plan, rank, partial(total, ex.features, batches))
                if isinstance(times, str):
                    print(f"  (c) {peer}: {times}")
                else:
                    row(f"(c) {peer}", times[1], len(encoded), tokens, times[0])
        for variants in (("adam", "adam-delta"), ("adam", "adam-delta", "sgd", "sign")):
            several = GradientExtractor(ex.model, variants=variants, projection=ex.projection)
            several.use(random_checkpoint(ex.model))
            more, one = alternate([several.features, ex.features], batches[-2:], options.repeats)
            print(f"  {len(variants)} variants in one pass: {more / one:.2f} of the time of one")


def released_seconds(ex: GradientExtractor, examples: list[Encoded]) -> float:
    """Seconds for `examples` as the released code takes them: one backward each, a flat gradient, Adam on it, a dense projection
    every 16.

    The dense matrix is drawn anew for every projection, in blocks of columns as trak's BasicProjector does it; one block is
    timed and multiplied by their number, and the cost shared over 16 examples.
    """
    size = sum(parameter.numel() for parameter in ex.parameters.values())
    started = gradient_setting.clock()
    flat = torch.zeros(size)
    for example in examples:
        plain_pass(ex, [example])
        g = torch.cat([parameter.grad.reshape(-1) for parameter in ex.parameters.values() if parameter.grad is not None])
        flat = (0.9 * flat + 0.1 * g) / torch.sqrt(0.999 * flat.square() + 0.001 * g.square() + 1e-8)
    ex.model.zero_grad()
    passes = gradient_setting.clock() - started
    gradients, columns = flat.expand(RELEASED_INTERVAL, size).contiguous(), max(1, min(100, 100_000_000 // size))
    matrix, generator = torch.empty(size, columns), torch.Generator().manual_seed(0)

    def block() -> None:
        matrix.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        gradients @ matrix

    block()
    return passes + timed(block) * (DIM / columns) / RELEASED_INTERVAL * len(examples)


def beside_peer(
    options: argparse.Namespace,
    peer: str,
    folder: str,
    encoded: list[Encoded],
    plan: list[np.ndarray],
    rank: int,
    ours: Callable[[], float],
) -> tuple[float, float] | str:
    """Median seconds of our passes and of a peer's, which take turns; what it said last where it did not run."""
    file, log = Path(folder) / "examples.npz", Path(folder) / f"{peer}.log"
    np.savez(
        file,
        ids=np.concatenate([e.input_ids for e in encoded]),
        targets=np.concatenate([e.target for e in encoded]),
        lengths=[len(e) for e in encoded],
        order=np.concatenate(plan),
        batch_rows=[len(batch) for batch in plan],
    )
    script = Path(__file__).with_name("peers_gradients.py")
    command = [options.peers, str(script), peer, folder, str(file), str(rank), str(torch.get_num_threads()), options.clock]
    times: list[list[float]] = []
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
        ) as process,  # one of them leaves a file where it stands
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(options.repeats + 1):
            said = next((line for line in process.stdout if line.startswith(("ready", "seconds "))), None)
            if said is None:
                return f"did not run: {log.read_text().strip().splitlines()[-1]}"
            if said != "ready\n":
                times[-1].append(float(said.split()[1]))
            if len(times) < options.repeats:
                times.append([ours()])
                process.stdin.write("go\n")
                process.stdin.flush()
        process.stdin.close()
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def quality(options: argparse.Namespace) -> None:
    base, encoded = setting(options)
    ex, _ = extractor(base, 8, ("adam-delta",))
    seeds = {"sparse": range(32), "rademacher": (0, 1)}
    print("\nprojection quality, adam-delta gradients at r=8: error of inner products of unit rows, exact neighbours kept")
    for line in projection_quality(ex, encoded[:24], dims=(1024, 2048, 4096, 8192, 16384), seeds=seeds):
        print(
            f"  D={line.dim:>6} {line.kind:<10} {len(seeds[line.kind]):>2} seeds: rms error {line.error:.5f}, "
            f"{line.error / line.dense_error:.2f} of the dense one's expectation {line.dense_error:.5f}; "
            f"nearest neighbour {line.nearest:.0%}, of 5 nearest {line.nearest_five:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
