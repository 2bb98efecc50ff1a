"""The specification: the plainest way to compute what the fast code computes; one section an area."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

# --- budget -------------------------------------------------------------------------------------------------------------


def allocate(sizes: list[int], total: int) -> list[int]:
    """Largest remainder; then every non-empty cluster without a row takes one from whoever is furthest above its share."""
    from fractions import Fraction

    rows = sum(sizes)
    if total == 0:
        return [0] * len(sizes)
    share = [Fraction(size * total, rows) for size in sizes]
    budget = [int(s) for s in share]
    order = sorted(range(len(sizes)), key=lambda k: (-(share[k] - int(share[k])), k))
    for k in order[: total - sum(budget)]:
        budget[k] += 1
    if total >= sum(size > 0 for size in sizes):
        for k in range(len(sizes)):
            if sizes[k] > 0 and budget[k] == 0:
                donors = [j for j in range(len(sizes)) if budget[j] > 1]
                donor = max(donors, key=lambda j: (budget[j] - share[j], -j))
                budget[donor] -= 1
                budget[k] = 1
    return budget


# --- clustering and selection -------------------------------------------------------------------------------------------
# docs/method.md in float64. Legend: A (n, D) rows, b (D,) target, k budget, S the rows of the round; X (N, D), K clusters.

TIE = 1e-11  # correlations this close, relative to |a_j| |b|, are tied, and weights this close: rounding must not choose


def naive_correlations(A: np.ndarray, r: np.ndarray) -> np.ndarray:
    """<a_j, r> for every row, each summed on its own so that equal rows give equal numbers (a matrix product need not)."""
    return (A * r).sum(axis=1)


def naive_argmax(correlations: np.ndarray, rows: list[int], scale: np.ndarray) -> int:
    """The row of `rows` with the largest correlation; of tied ones the lowest."""
    best = max(rows, key=lambda j: correlations[j])
    return min(j for j in rows if correlations[best] - correlations[j] <= TIE * max(scale[j], scale[best]))


def naive_ridge(A: np.ndarray, b: np.ndarray, S: list[int], ridge: float) -> np.ndarray:
    """argmin over x of |b - A_S' x|^2 + ridge |x|^2."""
    return np.linalg.solve(A[S] @ A[S].T + ridge * np.eye(len(S)), A[S] @ b)


def naive_omp(A: np.ndarray, b: np.ndarray, k: int, ridge: float = 1.0, tol: float = 1e-4) -> list[tuple[int, int, float, float]]:
    """(row, round, correlation when chosen, |r|/|b| after the choice) in the order of choice.

    docs/method.md, line by line. What it leaves open: a row of length zero gets x = 0; a target of length zero counts as
    reached; of equally negative weights the earliest chosen leaves, and a weight within TIE of zero is not negative; the row
    that fills an empty round is the argmax against the target, and leaves |r|/|b| where it was.
    """
    A, b = np.asarray(A, np.float64), np.asarray(b, np.float64)
    length = np.linalg.norm(b)
    scale = np.linalg.norm(A, axis=1) * length
    remaining = list(range(len(A)))
    k = min(k, len(A))
    chosen: list[tuple[int, int, float, float]] = []
    rounds = 0
    while len(chosen) < k:
        S: list[int] = []
        story: dict[int, tuple[float, float]] = {}
        r = b
        for _ in range(k - len(chosen)):
            if length == 0 or np.linalg.norm(r) / length < tol:
                break
            c = naive_correlations(A, r)
            j = naive_argmax(c, remaining, scale)
            if j in S:
                break
            S.append(j)
            if len(S) == 1:
                x = np.array([c[j] / (A[j] @ A[j]) if A[j] @ A[j] > 0 else 0.0])
                ended = False
            else:
                x, ended = naive_ridge(A, b, S, ridge), False
                while not ended and min(x) < -TIE * max(abs(x)):
                    worst = int(np.argmax(x <= min(x) + TIE * max(abs(x))))
                    ended = worst == len(S) - 1
                    del S[worst]
                    if not ended:
                        x = naive_ridge(A, b, S, ridge)
            if ended:
                break
            r = b - A[S].T @ x
            story[j] = (float(c[j]), float(np.linalg.norm(r) / length))
        if not S:
            c = naive_correlations(A, b)
            j = naive_argmax(c, remaining, scale)
            S, story[j] = [j], (float(c[j]), 1.0 if length else 0.0)
        chosen += [(j, rounds, *story[j]) for j in S]
        remaining = [j for j in remaining if j not in S]
        rounds += 1
    return chosen


def naive_weights(A: np.ndarray, b: np.ndarray, chosen: list[int], ridge: float = 1.0) -> np.ndarray:
    """The non-negative ridge weights of the chosen rows: scipy's nnls on the stacked system [A_S'; sqrt(ridge) I] x = [b; 0]."""
    from scipy.optimize import nnls

    if not chosen:
        return np.zeros(0)  # scipy crashes on it
    A, b = np.asarray(A, np.float64)[chosen], np.asarray(b, np.float64)
    stacked = np.vstack([A.T, np.sqrt(ridge) * np.eye(len(chosen))])
    return nnls(stacked, np.append(b, np.zeros(len(chosen))), maxiter=100 * max(len(chosen), 1))[0]


def naive_assign(X: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label (lowest of equals) and distance of each row, from the differences themselves."""
    d2 = ((X[:, None, :].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(axis=2)
    return d2.argmin(axis=1), np.sqrt(d2.min(axis=1))


def naive_cluster_stats(X: np.ndarray, labels: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, sizes and inertia (sum of squared distances to the mean) of every cluster."""
    X = X.astype(np.float64)
    sizes = np.array([(labels == j).sum() for j in range(K)])
    means = np.array([X[labels == j].mean(axis=0) if sizes[j] else np.zeros(X.shape[1]) for j in range(K)])
    inertia = np.array([((X[labels == j] - means[j]) ** 2).sum() for j in range(K)])
    return means, sizes, inertia


def naive_minibatch_step(X: np.ndarray, centroids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One mini-batch update: each centre moves to the running mean of all rows it was ever given (Sculley 2010, algorithm 1).

    Rows are taken one by one with the learning rate 1/count, against the labels fixed at the start of the batch.
    """
    centroids, counts = centroids.astype(np.float64).copy(), counts.astype(np.float64).copy()
    labels, _ = naive_assign(X, centroids)
    for row, label in zip(X.astype(np.float64), labels, strict=True):
        counts[label] += 1
        centroids[label] += (row - centroids[label]) / counts[label]
    return centroids, counts, labels


def naive_fill(sizes: Sequence[int], total: int, weights: Sequence[float]) -> list[int]:
    """Shares by weight; whoever has too few rows gives all, and the others share again; the rest by largest remainder."""
    from fractions import Fraction

    budget, left = [0] * len(sizes), dict(enumerate(map(Fraction, weights)))
    while left:
        quotas = {k: weight * (total - sum(budget)) / sum(left.values()) for k, weight in left.items()}
        full = [k for k in left if quotas[k] >= sizes[k]]
        if not full:
            floors = {k: quotas[k].__floor__() for k in left}
            missing = total - sum(budget) - sum(floors.values())
            up = sorted(left, key=lambda k: (floors[k] - quotas[k], k))[:missing]
            for k in left:
                budget[k] = floors[k] + (k in up)
            break
        for k in full:
            budget[k] = sizes[k]
            del left[k]
    return budget


def naive_shares(choose: Any, there: dict[str, int], bounds: dict[str, tuple[int, int]], total: int) -> dict[str, int]:
    """Amounts of datasets within bounds. choose(free datasets, budget) -> amount of each, as if there were no bounds."""
    fixed: dict[str, int] = {}
    while True:
        free = {name: amount for name, amount in there.items() if name not in fixed}
        chosen = choose(free, total - sum(fixed.values()))
        excess = {name: chosen[name] - bounds[name][1] for name in free if chosen[name] > bounds[name][1]}
        lack = {name: bounds[name][0] - chosen[name] for name in free if chosen[name] < bounds[name][0]}
        if not excess and not lack:
            return fixed | chosen
        worse = sum(excess.values()) >= sum(lack.values())
        fixed |= {name: bounds[name][1] for name in excess} if worse else {name: bounds[name][0] for name in lack}


def naive_prefix(costs: Sequence[int], order: Sequence[int], budget: int) -> list[int]:
    """Rows in order as long as they can be paid for; the first that cannot ends it."""
    chosen: list[int] = []
    for row in order:
        if sum(costs[i] for i in [*chosen, row]) > budget:
            break
        chosen.append(row)
    return chosen


# --- controls -----------------------------------------------------------------------------------------------------------


def naive_draw(example_id: str, seed: int) -> float:
    """A number in [0, 1) for an example, of whole-number arithmetic."""
    high, low = int(example_id[:16], 16), int(example_id[16:], 16)
    return (naive_splitmix(high ^ naive_splitmix(low ^ naive_splitmix(seed))) >> 11) / 2**53


def naive_best(scores: list[float], draws: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], -draws[i], i))[:k]


def naive_middle(losses: list[float]) -> list[float]:
    """Minus the distance of each one's (mean) rank from the median's, as a share of all."""
    n = len(losses)
    ranks = [(sum(x < loss for x in losses) + sum(x <= loss for x in losses) - 1) / 2 for loss in losses]
    return [-abs(rank - (n - 1) / 2) / n for rank in ranks]


def naive_kcenter(A: np.ndarray, k: int, begin: list[int]) -> tuple[list[int], list[float]]:
    """Rows in order of choice and each one's distance to the nearest before it, every distance computed anew."""
    A = A.astype(np.float64)
    chosen, radii = list(begin), [float("nan")] * len(begin)
    while len(chosen) < min(k, len(A)):
        nearest = np.min([np.linalg.norm(A - A[j], axis=1) for j in chosen], axis=0)
        nearest[chosen] = -1.0
        chosen.append(int(np.argmax(nearest)))
        radii.append(float(nearest[chosen[-1]]))
    return chosen[:k], radii[:k]


def naive_herding(A: np.ndarray, b: np.ndarray, k: int, begin: Sequence[int] = ()) -> list[int]:
    """Each step takes the row that brings the mean of the chosen nearest to b; of rows that tie the lowest."""
    A = A.astype(np.float64)
    chosen = list(begin)
    while len(chosen) < min(k, len(A)):
        t = len(chosen) + 1
        error = [np.inf if i in chosen else ((A[[*chosen, i]].sum(axis=0) - t * b) ** 2).sum() for i in range(len(A))]
        tie = 2e-6 * (A**2).sum(axis=1).max()
        chosen.append(next(i for i in range(len(A)) if error[i] <= min(error) + tie))
    return chosen


# One function for each selection method, found by name: choose_<name>(c, k) gives rows of a group in order of choice. c holds the
# method's columns by name (draw, target_tokens, loss, norm, distance: lists), features (n, D) and target (D,); for methods that
# begin with pinned rows, `begin` has these.


def choose_tagcos(c: dict[str, Any], k: int) -> list[int]:
    return [row for row, *_ in naive_omp(c["features"].astype(np.float64), c["target"], k)]


def choose_omp(c: dict[str, Any], k: int) -> list[int]:
    return choose_tagcos(c, k)


def choose_random(c: dict[str, Any], k: int) -> list[int]:
    return naive_best(c["draw"], c["draw"], k)


def choose_stratified(c: dict[str, Any], k: int) -> list[int]:
    return choose_random(c, k)


def choose_balanced(c: dict[str, Any], k: int) -> list[int]:
    return choose_random(c, k)


def choose_shuffled(c: dict[str, Any], k: int) -> list[int]:
    """The row with the j-th largest draw has the j-th feature."""
    owner = naive_best(c["draw"], c["draw"], len(c["draw"]))
    return [owner[feature] for feature in choose_tagcos(c, k)]


def choose_length_matched(c: dict[str, Any], k: int) -> list[int]:
    """Of every bin between 20-quantiles of the reference's lengths the largest draws, as many as its part of the reference."""
    lengths, n = c["target_tokens"], len(c["draw"])
    known = sorted(length for length, marked in zip(lengths, c["reference"], strict=True) if marked)
    edges = sorted({known[max(-(-len(known) * i // 20) - 1, 0)] for i in range(1, 20)} | {known[0] - 1, known[-1]})
    bins = [sum(edge < length for edge in edges) for length in lengths]
    sizes = [bins.count(b) for b in range(len(edges) + 1)]
    wanted = [sum(1 for i in range(n) if bins[i] == b and c["reference"][i]) for b in range(len(sizes))]
    asked = [b for b in range(len(sizes)) if wanted[b]]
    rest = [b for b in range(len(sizes)) if sizes[b] and not wanted[b]]
    k = min(k, n)
    budgets = dict.fromkeys(range(len(sizes)), 0)
    for some, weights in ((asked, wanted), (rest, sizes)):
        part = min(k - sum(budgets.values()), sum(sizes[b] for b in some))
        shares = naive_fill([sizes[b] for b in some], part, [weights[b] for b in some])
        budgets |= dict(zip(some, shares, strict=True))
    chosen = [
        i
        for i in range(n)
        if sum(bins[j] == bins[i] and (-c["draw"][j], j) < (-c["draw"][i], i) for j in range(n)) < budgets[bins[i]]
    ]
    return sorted(chosen, key=lambda i: (-c["draw"][i], i))


def naive_cosines(A: np.ndarray) -> np.ndarray:
    A = A.astype(np.float64)
    lengths = np.linalg.norm(A, axis=1, keepdims=True)
    A = np.divide(A, lengths, out=np.zeros_like(A), where=lengths > 0)
    return A @ A.T


def choose_facility_location(c: dict[str, Any], k: int) -> list[int]:
    """Each step takes the row that adds most to the sum over all rows of the similarity to the nearest chosen one, or of 0."""
    S, chosen = naive_cosines(c["features"]), list(c.get("begin", ()))
    nearest = S[:, chosen].max(axis=1, initial=0)
    while len(chosen) < min(k, len(S)):
        added = [-1.0 if j in chosen else float(np.maximum(S[:, j] - nearest, 0).sum()) for j in range(len(S))]
        chosen.append(next(j for j in range(len(S)) if added[j] >= max(added) - 1e-6 * (1 + max(added))))
        nearest = np.maximum(nearest, S[:, chosen[-1]])
    return chosen


def choose_log_det(c: dict[str, Any], k: int) -> list[int]:
    """Begins with the largest draw; each step takes the row with which the determinant of cosines + I is largest."""
    S = naive_cosines(c["features"]) + np.eye(len(c["features"]))
    chosen = list(c.get("begin") or [int(np.argmax(c["draw"]))])[:k]
    while len(chosen) < min(k, len(S)):
        volumes = [-1.0 if j in chosen else np.linalg.slogdet(S[np.ix_([*chosen, j], [*chosen, j])])[1] for j in range(len(S))]
        chosen.append(int(np.argmax(volumes)))
    return chosen


def choose_spice(c: dict[str, Any], k: int) -> list[int]:
    """As `choose_log_det`, less a tenth of the cosine with the mean direction of the chosen where that is below 0."""
    lengths = np.linalg.norm(c["features"].astype(np.float64), axis=1, keepdims=True)
    U = np.divide(c["features"], lengths, out=np.zeros(c["features"].shape), where=lengths > 0)
    S = naive_cosines(c["features"]) + np.eye(len(U))
    chosen = list(c.get("begin") or [int(np.argmax(c["draw"]))])[:k]
    while len(chosen) < min(k, len(S)):
        mean = U[chosen].mean(axis=0)
        value = np.full(len(S), -np.inf)
        for j in set(range(len(S))) - set(chosen):
            volume = np.linalg.slogdet(S[np.ix_([*chosen, j], [*chosen, j])])[1]
            value[j] = volume - 0.1 * max(0.0, -U[j] @ mean / (np.linalg.norm(mean) or 1.0))
        chosen.append(int(np.argmax(value)))
    return chosen


def choose_longest(c: dict[str, Any], k: int) -> list[int]:
    return naive_best(c["target_tokens"], c["draw"], k)


def choose_hardest(c: dict[str, Any], k: int) -> list[int]:
    return naive_best(c["loss"], c["draw"], k)


def choose_ifd(c: dict[str, Any], k: int) -> list[int]:
    """The highest below 1; then the lowest from 1 on; then those without a value."""
    order = sorted(range(len(c["ifd"])), key=lambda i: -c["draw"][i])
    known = [i for i in order if not np.isnan(c["ifd"][i])]
    below = sorted((i for i in known if c["ifd"][i] < 1), key=lambda i: -c["ifd"][i])
    above = sorted((i for i in known if c["ifd"][i] >= 1), key=lambda i: c["ifd"][i])
    return (below + above + [i for i in order if i not in known])[:k]


def choose_gradient_norm(c: dict[str, Any], k: int) -> list[int]:
    return naive_best(c["norm"], c["draw"], k)


def choose_perplexity(c: dict[str, Any], k: int) -> list[int]:
    return naive_best(naive_middle(c["loss"]), c["draw"], k)


def choose_kcenter(c: dict[str, Any], k: int) -> list[int]:
    return naive_kcenter(c["features"], k, c.get("begin") or [int(np.argmax(c["draw"]))])[0]


def choose_centroid(c: dict[str, Any], k: int) -> list[int]:
    return naive_best([-distance for distance in c["distance"]], c["draw"], k)


def choose_less(c: dict[str, Any], k: int) -> list[int]:
    parts = [[row for row, p in zip(c["wanted"], c["parts"], strict=True) if p == part] for part in set(c["parts"])]
    means = [np.mean(rows, axis=0) for rows in parts]
    return naive_best([max(naive_cosine(row, mean) for mean in means) for row in c["features"].astype(np.float64)], c["draw"], k)


def choose_rds(c: dict[str, Any], k: int) -> list[int]:
    """Parts take turns, within a part its examples, each the nearest row that is left."""
    members = [[i for i, p in enumerate(c["parts"]) if p == part] for part in sorted(set(c["parts"]))]
    rows, chosen = c["features"].astype(np.float64), list[int]()
    for turn in range(min(k, len(rows))):
        mine = members[turn % len(members)]
        wanted = c["wanted"][mine[turn // len(members) % len(mine)]]
        left = [j for j in range(len(rows)) if j not in chosen]
        chosen.append(max(left, key=lambda j: (naive_cosine(rows[j], wanted), -j)))
    return chosen


def naive_cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def naive_targets(rows: np.ndarray, parts: list[int], weights: list[float], labels: list[int], n: int) -> Any:
    """The weighted mean of the target examples in each group (of all of them where a group has none), and the share in each."""
    total = sum(weights[p] for p in set(parts))
    shares = [weights[p] / total / parts.count(p) for p in parts]
    everything = sum(s * row for s, row in zip(shares, rows, strict=True))
    means, sums = [], []
    for g in range(n):
        mine = [i for i, label in enumerate(labels) if label == g]
        sums.append(sum(shares[i] for i in mine))
        means.append(sum(shares[i] * rows[i] for i in mine) / sums[g] if mine else everything)
    return np.array(means), np.array(sums)


def choose_herding(c: dict[str, Any], k: int) -> list[int]:
    return naive_herding(c["features"], c["target"], k, c.get("begin", ()))


def choose_herding_clusters(c: dict[str, Any], k: int) -> list[int]:
    return choose_herding(c, k)


def naive_pins(sizes: list[int], total: int, least: list[int]) -> list[int]:
    """Budgets of groups: those whose part does not pay for their pins get what these cost; the others divide the rest again."""
    free = list(range(len(sizes)))
    budget = list(least)
    while free:
        found = allocate([sizes[g] for g in free], total - sum(least[g] for g in range(len(sizes)) if g not in free))
        short = [g for g, part in zip(free, found, strict=True) if part < least[g]]
        if not short:
            for g, part in zip(free, found, strict=True):
                budget[g] = part
            break
        free = [g for g in free if g not in short]
    return budget


def naive_pursuit_beyond(A: np.ndarray, b: np.ndarray, pinned: list[int], k: int, ridge: float) -> list[tuple[int, int]]:
    """(row, round): pins in round 0, then the pursuit of what their best combination with non-negative weights leaves of b."""
    from scipy.optimize import nnls

    A, b = np.asarray(A, np.float64), np.asarray(b, np.float64)
    P, unit = A[pinned], np.sqrt(ridge) * np.eye(len(pinned))
    weights, _ = nnls(np.vstack([P.T, unit]), np.concatenate([b, np.zeros(len(pinned))]))
    rest = [i for i in range(len(A)) if i not in pinned]
    found = naive_omp(A[rest], b - weights @ P, k - len(pinned), ridge)
    return [(row, 0) for row in pinned] + [(rest[row], round_ + 1) for row, round_, *_ in found]


def naive_stands(A: np.ndarray, chosen: list[int]) -> list[tuple[int, float]]:
    """(place in `chosen` of the nearest by cosine, the cosine) of every row; the first of those that are tied."""
    A = A.astype(np.float64)
    lengths = np.sqrt((A**2).sum(axis=1))
    found = []
    for i in range(len(A)):
        cosines = [A[i] @ A[c] / (lengths[i] * lengths[c]) if lengths[i] * lengths[c] else 0.0 for c in chosen]
        place = next(p for p, cosine in enumerate(cosines) if cosine >= max(cosines) - 1e-12)
        found.append((place, cosines[place]))
    return found


def naive_match_errors(A: np.ndarray, labels: np.ndarray, chosen: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    """|mean of the chosen - mean| / |mean|, plain and by shares."""
    mean = A.mean(axis=0)
    plain, weighted = A[chosen].mean(axis=0), (shares[:, None] * A[chosen]).sum(axis=0)
    return tuple(float(np.linalg.norm(x - mean) / np.linalg.norm(mean)) for x in (plain, weighted))  # type: ignore[return-value]


# --- gradients and projection -------------------------------------------------------------------------------------------
# One example at a time, the model's own logits, plain autograd, whole gradients, whole matrices, Python integers.


def naive_gradients(model: Any, input_ids: np.ndarray, target: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Mean cross-entropy over the target tokens of one example, and its gradient by PEFT's parameter names."""
    import torch

    parameters = {n.replace(".default.", "."): p for n, p in model.named_parameters() if ".lora_" in n}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    ids = torch.tensor(input_ids, dtype=torch.long)[None]
    log_probabilities = torch.log_softmax(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0], dim=-1)
    losses = [-log_probabilities[t - 1, ids[0, t]] for t in range(1, len(input_ids)) if target[t]]
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return float(loss.detach()), {name: g.numpy() for name, g in zip(parameters, gradients, strict=True)}


def naive_variant(variant: str, g: np.ndarray, m: np.ndarray, v: np.ndarray, t: int) -> np.ndarray:
    """docs/method.md, line by line."""
    b1, b2, eps = 0.9, 0.999, 1e-8

    def adam(g: np.ndarray) -> np.ndarray:
        return (b1 * m + (1 - b1) * g) / np.sqrt(b2 * v + (1 - b2) * g * g + eps)

    if variant == "adam":
        return adam(g)
    if variant == "adam-delta":
        return adam(g) - adam(np.zeros_like(g))
    if variant == "adam-corrected":
        m_hat = (b1 * m + (1 - b1) * g) / (1 - b1 ** (t + 1))
        v_hat = (b2 * v + (1 - b2) * g * g) / (1 - b2 ** (t + 1))
        return m_hat / (np.sqrt(v_hat) + eps)
    if variant == "preconditioned":
        return g / (np.sqrt(v / (1 - b2**t)) + eps)
    return {"sgd": g, "sign": np.sign(g)}[variant]


def naive_splitmix(counter: int) -> int:
    mask = (1 << 64) - 1
    z = counter * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def naive_hidden(model: Any, input_ids: np.ndarray) -> np.ndarray:
    """RDS+: the mean of the last hidden states (T, H) of one example, the state at position i weighing i."""
    import torch

    ids = torch.tensor(input_ids, dtype=torch.long)[None]
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[-1][0].numpy()
    total = np.zeros(states.shape[1])
    for i, state in enumerate(states, start=1):
        total += i * state
    return total / sum(range(1, len(states) + 1))


def naive_projection(kind: str, seed: int, name: str, size: int, dim: int, entries: int = 2) -> np.ndarray:
    """The part of R (size, dim) that belongs to one parameter, entry by entry."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")
    matrix = np.zeros((size, dim))
    for i in range(size):
        if kind == "rademacher":
            words = -(-dim // 64)
            for j in range(dim):
                bit = naive_splitmix(key + i * words + j // 64) >> (j % 64) & 1
                matrix[i, j] = (1 - 2 * bit) / np.sqrt(dim)
        else:
            for entry in range(entries):
                counter = key + 2 * (i // 64 * entries + entry)
                bit = naive_splitmix(counter) >> (i % 64) & 1
                draw = naive_splitmix(counter + 1) >> 32
                if entry == 0:
                    first = offset = draw * dim >> 32
                else:  # a later entry is never where the first is: drawn from one of entries - 1 strata of [1, dim)
                    low, high = (dim - 1) * (entry - 1) // (entries - 1), (dim - 1) * entry // (entries - 1)
                    offset = first + 1 + low + (draw * (high - low) >> 32)
                matrix[i, (offset + i % 64) % dim] += (1 - 2 * bit) / np.sqrt(entries)
    return matrix


def naive_feature(gradients: dict[str, np.ndarray], checkpoint: Any, variant: str, projection: Any) -> np.ndarray:
    """normalise(R G) of one example at one checkpoint."""
    total = np.zeros(projection.dim)
    for name, g in gradients.items():
        m, v = (np.asarray(part[name], np.float64).reshape(-1) for part in (checkpoint.exp_avg, checkpoint.exp_avg_sq))
        G = naive_variant(variant, g.astype(np.float64).reshape(-1), m, v, checkpoint.adam_steps)
        total += G @ naive_projection(projection.kind, projection.seed, name, len(G), projection.dim)
    return total / np.linalg.norm(total)


def naive_hidden_feature(model: Any, input_ids: np.ndarray, projection: Any) -> np.ndarray:
    """normalise(R h) of one example."""
    h = naive_hidden(model, input_ids)
    projected = h @ naive_projection(projection.kind, projection.seed, "hidden", len(h), projection.dim)
    return projected / np.linalg.norm(projected)


def naive_vector_feature(vector: list[float], projection: Any) -> np.ndarray:
    """normalise(R v) of a vector of the user's own; without a projection, normalise(v)."""
    v = np.array([float(x) for x in vector])
    if projection is not None:
        v = v @ naive_projection(projection.kind, projection.seed, "vectors", len(v), projection.dim)
    return v / np.linalg.norm(v)


# --- ingest -------------------------------------------------------------------------------------------------------------


def example_id(messages: list[dict], tools: object = None, template_kwargs: object = None) -> str:
    """BLAKE2b-128 over `key bytes newline value newline` records: docs/formats.md."""

    def canonical(v: Any, keep_null: bool = False) -> str:
        if v is None:
            return "null;"
        if isinstance(v, bool):
            return "true;" if v else "false;"
        if isinstance(v, str):
            return "s" + str(len(v)) + ":" + v + ";"
        if isinstance(v, dict):
            return (
                "{" + "".join(canonical(k) + canonical(v[k], keep_null) for k in sorted(v) if keep_null or v[k] is not None) + "}"
            )
        if isinstance(v, list):
            return "[" + "".join(canonical(x, keep_null) for x in v) + "]"
        if v == int(v) and (isinstance(v, int) or abs(v) < 2**53):
            return f"i{int(v)};"
        return f"f{v.hex()};"

    records = []
    for m in messages:
        if m.get("name") is not None:
            records.append(("name", m["name"]))
        if m.get("train") is not None:
            records.append(("train", ",".join(f"{r['begin']}-{r['end']}" for r in m["train"])))
        if m.get("reasoning") is not None:
            records.append(("reasoning", m["reasoning"]))
        if m.get("tool_calls") is not None:
            records.append(("tool_calls", canonical(json.loads(m["tool_calls"]), keep_null=True)))
        if m.get("tool_call_id") is not None:
            records.append(("tool_call_id", m["tool_call_id"]))
        records.append((m["role"], m["content"]))
    if tools is not None:
        records.append(("tools", canonical(tools)))
    if template_kwargs is not None:
        records.append(("template_kwargs", canonical(template_kwargs, keep_null=True)))
    data = b"".join(k.encode() + b" " + str(len(v.encode())).encode() + b"\n" + v.encode() + b"\n" for k, v in records)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def plain_conversation(record: dict) -> list[tuple[str, str]]:
    """The four shapes that everyone has, without any of the checks."""
    if "messages" in record:
        return [(m["role"], m["content"]) for m in record["messages"]]
    if "conversations" in record:
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        return [(roles[m["from"]], m["value"]) for m in record["conversations"]]
    if "instruction" in record:
        extra = record.get("input")
        return [("user", record["instruction"] + ("\n\n" + extra if extra else "")), ("assistant", record["output"])]
    return [("user", record["prompt"]), ("assistant", record["completion"])]


def words(text: str) -> list[str]:
    """Words as near-duplicates and decontamination see them."""
    import re

    own = "\u3000-\ud7ff"  # scripts without spaces: a character is a word
    return re.findall(rf"[{own}]|(?:[0-9a-z]|[\u00c0-\u1fff]|[\ud800-\uffff]|[\U00010000-\U0010ffff])+", text.lower())


def shares_run(a: str, b: str, n: int) -> bool:
    """Whether two texts have n words in a row in common."""
    runs = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (words(a), words(b))]
    return bool(runs[0] & runs[1])


def jaccard(a: str, b: str, n: int) -> float:
    """Share of runs of n words that two texts have in common."""
    runs = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (words(a), words(b))]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def naive_holm(p_values: list[float]) -> list[float]:
    """Holm (1979): the i-th smallest of m p-values times m - i + 1, made monotone, at most 1."""
    m = len(p_values)
    adjusted = []
    for p in p_values:
        smaller = sorted(q for q in p_values if q <= p)
        adjusted.append(min(1.0, max((m - i) * q for i, q in enumerate(smaller))))
    return adjusted


def padding_share(lengths: np.ndarray | Sequence[int], batches: Sequence[np.ndarray]) -> float:
    """Share of padding among all tokens that a plan computes, 0 to 1."""
    lengths = np.asarray(lengths, np.int64)
    computed = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1.0 - float(lengths.sum()) / computed if computed else 0.0


# --- signals ------------------------------------------------------------------------------------------------------------


def naive_answer_loss(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Mean cross-entropy of an answer with its end mark, given a text before it."""
    import torch

    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[len(before) - 1 : -1], ids[0, len(before) :]))


def naive_alignments(features: np.ndarray, labels: np.ndarray, of: float) -> tuple[list[float], list[float], list[int]]:
    """Of every row: cosine with the mean of all, with the mean of its cluster, and rows of its cluster from a cosine `of` on."""
    pool, cluster, alike = [], [], []
    for i, (row, label) in enumerate(zip(features, labels, strict=True)):
        mine = features[labels == label]
        pool.append(naive_cosine(row, features.mean(axis=0)))
        cluster.append(naive_cosine(row, mine.mean(axis=0)))
        alike.append(1 + sum(naive_cosine(row, features[j]) >= of for j in np.flatnonzero(labels == label) if j != i))
    return pool, cluster, alike


def naive_ifd(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    """Loss of the answer given its prompt, over its loss behind an empty prompt, in the form of PLAIN_TEMPLATE."""
    opening = f"{tokenizer.bos_token or ''}<|user|>\n{{}}\n<|assistant|>\n"
    given, alone = (naive_answer_loss(model, tokenizer, opening.format(text), answer) for text in (question, ""))
    return given / alone
