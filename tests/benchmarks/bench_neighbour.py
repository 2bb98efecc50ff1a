"""Gradient passes beside a busy process, by the wait policy of OpenMP's threads, all in one run.

    python -m tests.benchmarks.bench_neighbour [--rounds 5] [--tokens 512] [--layers 8] [--loops 1]

Each policy has a process of its own, because OpenMP reads its variables when it is loaded. The processes compute the same batches
in turn, with and without pure Python loops running, so that other work on the machine falls on all of them; medians are printed
as shares of the rate without the variables and without the loops. The features' digests show whether bits differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

POLICIES: dict[str, dict[str, str]] = {
    "unset": {},
    "spin count 0": {"GOMP_SPINCOUNT": "0"},
    "spin count 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin count 10,000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "passive, two streams of one thread": {"OMP_WAIT_POLICY": "PASSIVE", "STREAMS": "2"},
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "STREAMS")
LOOP = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512, help="a batch")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--loops", type=int, default=1, help="busy processes beside")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        compute(options)
        return
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "tests.benchmarks.bench_neighbour", "--child"]
    command += ["--tokens", str(options.tokens), "--layers", str(options.layers)]
    children = {
        name: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain | POLICIES[name], bufsize=1
        )
        for name in options.policies
    }
    seconds: dict[tuple[str, bool], list[float]] = {}
    digests: dict[str, str] = {}
    try:
        for _ in range(options.rounds + 1):
            for beside in (False, True):
                loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(options.loops if beside else 0)]
                try:
                    for name, child in children.items():
                        spent, digests[name] = ask(child)
                        seconds.setdefault((name, beside), []).append(spent)
                finally:
                    for loop in loops:
                        loop.kill()
                        loop.wait()
    finally:
        for child in children.values():
            child.communicate()
    report(options, seconds, digests)


def ask(child: Any) -> tuple[float, str]:
    child.stdin.write("go\n")
    spent, digest = child.stdout.readline().split()
    return float(spent), digest


def report(options: argparse.Namespace, seconds: dict[tuple[str, bool], list[float]], digests: dict[str, str]) -> None:
    # the first round, in which memory is allocated and kernels are compiled, does not count
    medians = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    first = options.policies[0]
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.tokens} tokens a batch, {options.layers} layers, "
        f"{options.rounds} rounds, beside {options.loops} loops"
    )
    print(f"{'':<38}{'seconds':>8}{'rate':>8}{'beside':>8}{'of own':>8}  bits")
    for name in options.policies:
        quiet, beside = medians[name, False], medians[name, True]
        base = medians[first, False]
        same = "same" if digests[name] == digests[first] else "differ"
        print(f"{name:<38}{quiet:8.2f}{base / quiet:8.2f}{base / beside:8.2f}{quiet / beside:8.2f}  {same}")


def compute(options: argparse.Namespace) -> None:
    """Features of four batches for every line on standard input; seconds and digest on standard output."""
    import numpy as np
    import torch

    from tests.benchmarks.gradient_setting import extractor, random_model
    from tests.models import random_encoded

    streams = int(os.environ.get("STREAMS", "1"))
    extractors = [extractor(random_model(576, options.layers, 9, 3, 1536, 8192), 8, ("adam",))[0] for _ in range(streams)]
    length = options.tokens // 4
    batches = [random_encoded([length] * 4, vocabulary=8000, seed=seed) for seed in range(4)]

    def run(number: int) -> list[np.ndarray]:
        if streams > 1:
            torch.set_num_threads(1)
        return [extractors[number].features(batch).features["adam"].numpy() for batch in batches[number::streams]]

    with ThreadPoolExecutor(streams) as pool:
        for _ in sys.stdin:
            started = time.perf_counter()
            parts = list(pool.map(run, range(streams)))
            spent = time.perf_counter() - started
            digest = hashlib.blake2b(digest_size=8)
            for i in range(len(batches)):
                digest.update(parts[i % streams][i // streams].tobytes())
            print(spent, digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main()
