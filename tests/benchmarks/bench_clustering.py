"""Clustering and selection beside their floors and their peers.   python -m tests.benchmarks.bench_clustering [--quick]

Every ratio is against something run in this process, alternately with ours; medians. Sections: omp (the matrix product that
must be done; the definition as released implementations run it; scikit-learn), lanes (several clusters one after the other, and
side by side), kmeans (scikit-learn, faiss if installed), large (50,000 rows in a fresh process, with its peak memory).
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from flows.workers.executor import partitioned
from flows.workers.work import Progress, WorkerResources
from tagcos_stream.clustering import kmeans
from tagcos_stream.config import Settings
from tagcos_stream.machine import available_cpus
from tagcos_stream.selection.pursuit.omp import omp_select, peak_bytes
from tagcos_stream.types import ArrayRows, RowBlocks
from tests.benchmarks.features import Shape


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def definition(features: torch.Tensor, target: torch.Tensor, budget: int, *, released: bool) -> float:
    """Seconds that the first round takes as its definition says it: all correlations from the residual, and the normal
    equations rebuilt and solved in every step. `released`: by torch.linalg.lstsq, as OrthogonalMP_REG_Parallel does (CORDS, and
    TAGCOS after it); otherwise by torch.linalg.solve, which is faster.
    """
    ridge, tol = 1.0, 1e-4

    def fit(rows: torch.Tensor) -> torch.Tensor:
        system, side = rows @ rows.T + ridge * torch.eye(len(rows)), (rows @ target)[:, None]
        return (torch.linalg.lstsq(system, side)[0] if released else torch.linalg.solve(system, side))[:, 0]

    start = time.perf_counter()
    residual, chosen, length = target.clone(), [], target.norm().item()
    for _ in range(budget):
        if residual.norm().item() / length < tol:
            break
        scores = features @ residual
        j = int(scores.argmax())
        if j in chosen:
            break
        chosen.append(j)
        rows = features[chosen]
        x = scores[j : j + 1] / (rows[0] @ rows[0]) if len(chosen) == 1 else fit(rows)
        while x.min() < 0:
            worst = int(x.argmin())
            newest = worst == len(chosen) - 1
            chosen = chosen[:worst] + chosen[worst + 1 :]
            if newest:
                return time.perf_counter() - start
            rows = features[chosen]
            x = fit(rows)
        residual = target - rows.T @ x
    return time.perf_counter() - start


def bench_omp(n: int, dim: int, budget: int, repeats: int, *, peers: bool) -> None:
    print(f"\nOMP, n={n:,} D={dim:,} budget {budget:,}, float32, one cluster")
    features = Shape(dim, 1, 1).array(n)
    target = features.mean(axis=0, dtype=np.float64)
    batch = features[:budget].copy()
    x, b = torch.from_numpy(features), torch.from_numpy(target.astype(np.float32))
    omp_select(features[:300], target, 10)
    floor, ours = [], []
    for _ in range(repeats):
        floor.append(min(seconds(lambda: features @ batch.T), seconds(lambda: x @ torch.from_numpy(batch).T)))
        ours.append(seconds(lambda: omp_select(features, target, budget)))
    base, mine = float(np.median(floor)), float(np.median(ours))
    result = omp_select(features, target, budget)
    line("matrix product of the budget's rows with all", base, base)
    line("omp_select", mine, base)
    print(f"    {result.stats}")
    if peers:
        for name, released in (("as released, by lstsq", True), ("by solve", False)):
            plain = definition(x, b, budget, released=released)
            line(f"definition, {name}", plain, base)
            print(f"    omp_select is {plain / mine:.1f} times faster")
        from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram

        line(
            "scikit-learn orthogonal_mp_gram, with its Gram matrix",
            seconds(
                lambda: orthogonal_mp_gram(features @ features.T, features @ target.astype(np.float32), n_nonzero_coefs=budget)
            ),
            base,
        )
        line(
            "scikit-learn orthogonal_mp",
            seconds(lambda: orthogonal_mp(features.T, target.astype(np.float32), n_nonzero_coefs=budget, precompute=False)),
            base,
        )


def pursuits(
    clusters: list[np.ndarray], resources: WorkerResources, tasks: Iterator[int], progress: Progress | None
) -> Iterator[np.ndarray]:
    """5% of each cluster, as a `Work` of an executor: task n is the n-th of the clusters (n, D)."""
    for task in tasks:
        features = clusters[task]
        target = features.mean(axis=0, dtype=np.float64)
        yield omp_select(features, target, len(features) // 20, threads=resources.threads).indices


def bench_lanes(n: int, dim: int, repeats: int) -> None:
    cores = available_cpus()
    clusters = [Shape(dim, 1, seed).array(n) for seed in range(2 * cores)]
    print(f"\nPursuits of {len(clusters)} clusters of n={n:,} D={dim:,}, 5% of each, {cores} threads")
    batch = torch.from_numpy(clusters[0][: n // 20].copy())
    tensors = [torch.from_numpy(features) for features in clusters]
    omp_select(clusters[0][:300], clusters[0][0].astype(np.float64), 10)

    def chosen(lanes: int) -> None:
        found = partitioned(pursuits, clusters, range(len(clusters)), Settings(threads=cores), lanes=lanes, needs_model=False)
        assert len(list(found)) == len(clusters)

    spent: dict[int, list[float]] = {0: [], 1: [], cores: []}
    for _ in range(repeats):
        spent[0].append(seconds(lambda: [x @ batch.T for x in tensors]))
        for lanes in (1, cores):
            spent[lanes].append(seconds(lambda lanes=lanes: chosen(lanes)))  # type: ignore[misc]
    floor = float(np.median(spent[0]))
    line("matrix products of the budgets' rows with all", floor, floor)
    line("one after the other, on all threads", float(np.median(spent[1])), floor)
    line(f"{cores} at the same time, on one thread each", float(np.median(spent[cores])), floor)


def line(name: str, taken: float, base: float) -> None:
    print(f"  {name:<56} {taken:8.2f} s  {taken / base:7.2f} x", flush=True)


def inertia_of(rows: RowBlocks, centroids: np.ndarray) -> float:
    distances = kmeans.assign(rows, centroids).distances
    return float((distances.astype(np.float64) ** 2).sum())


def bench_kmeans(n: int, dim: int, clusters: int, device: str) -> None:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    print(
        f"\nK-means, N={n:,} D={dim:,} K={clusters}; ours reads float16 blocks from a file, the peers a float32 array in memory"
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        store = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, dim))
        for first, block in zip(range(0, n, 1024), Shape(dim, 2 * clusters, 2).blocks(n, 1024), strict=True):
            store[first : first + len(block)] = block
        store.flush()
        rows = ArrayRows(np.load(path, mmap_mode="r"), 256)

        def ours() -> kmeans.Clustering:
            state = deque(kmeans.fit(rows, clusters, seed=0, device=device), maxlen=1).pop()
            return kmeans.finalise(rows, state, device=device)

        start = time.perf_counter()
        clustering = ours()
        taken = time.perf_counter() - start
        reached = inertia_of(rows, clustering.centroids)
        whole = np.asarray(store, np.float32)
        start = time.perf_counter()
        full = KMeans(clusters, n_init=1, random_state=0).fit(whole)
        base = time.perf_counter() - start
        print(f"  {'':<40} {'seconds':>8} {'of full':>8} {'inertia':>12} {'to full':>9}")

        def row(name: str, spent: float, inertia: float) -> None:
            print(
                f"  {name:<40} {spent:8.2f} {spent / base:8.2f} {inertia:12.2f} {inertia / full.inertia_ - 1:+9.2%}", flush=True
            )

        row(f"scikit-learn KMeans, {full.n_iter_} iterations", base, full.inertia_)
        row(f"ours, streamed, fit and finalise, {device}", taken, reached)
        for batch in (1024, 4096):
            start = time.perf_counter()
            mini = MiniBatchKMeans(clusters, n_init=1, random_state=0, batch_size=batch, max_iter=100).fit(whole)
            row(
                f"scikit-learn MiniBatchKMeans, batch {batch}",
                time.perf_counter() - start,
                inertia_of(rows, mini.cluster_centers_),
            )
        try:
            import faiss
        except ImportError:
            print("  faiss-cpu is not installed: left out")
            return
        for iterations in (10, 25, 50):
            start = time.perf_counter()
            peer = faiss.Kmeans(dim, clusters, niter=iterations, seed=1, max_points_per_centroid=n)
            peer.train(whole)
            row(
                f"faiss Kmeans, {iterations} iterations",
                time.perf_counter() - start,
                inertia_of(rows, np.asarray(peer.centroids)),
            )


def peak_of(code: str) -> int:
    """Peak resident bytes of a fresh interpreter running this code."""
    code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    return int(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def packages() -> str:
    found = []
    for name in ("numpy", "numba", "torch", "scikit-learn", "faiss-cpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--only", choices=["omp", "lanes", "kmeans", "large"], help="one section")
    parser.add_argument("--device", default="cpu", help="of our k-means: cpu or cuda")
    parser.add_argument("--repeats", type=int, default=5)
    choice = parser.parse_args()
    print(f"Python {platform.python_version()}, {packages()}; {torch.get_num_threads()} threads")
    part = 10 if choice.quick else 1
    if choice.only in (None, "omp"):
        bench_omp(10_000 // part, 8192, 500 // part, choice.repeats, peers=True)
        bench_omp(20_000 // part, 8192, 1000 // part, max(1, choice.repeats // 2), peers=True)
    if choice.only in (None, "lanes"):
        bench_lanes(10_000 // part, 8192, choice.repeats)
    if choice.only in (None, "kmeans"):
        bench_kmeans(100_000 // part, 2048, 100, choice.device)
    if choice.only in (None, "large"):
        n, dim, budget = 50_000 // part, 8192, 2500 // part
        code = (
            "import time, numpy as np; from tests.benchmarks.features import Shape; "
            "from tagcos_stream.selection.pursuit.omp import omp_select\n"
            f"A = Shape({dim}, 1, 1).array({n}); b = A.mean(axis=0, dtype=np.float64); t = time.perf_counter()\n"
            f"p = omp_select(A, b, {budget}, memory_limit=3 << 30); "
            "import sys; print(round(time.perf_counter() - t, 1), 's', p.stats, file=sys.stderr)"
        )
        print(f"\nOMP, n={n:,} D={dim:,} budget {budget:,}, a float32 array, a fresh process")
        peak = peak_of(code)
        features, own = 4 * n * dim / 2**30, peak_bytes(n, dim, budget, hold=True, blocks=None) / 2**30
        print(
            f"  measured {peak / 2**30:.2f} GiB; features {features:.2f} GiB + formula {own:.2f} GiB, and the interpreter's own"
        )
    print(f"\npeak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
