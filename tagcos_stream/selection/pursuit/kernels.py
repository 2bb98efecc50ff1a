"""Loops of the matching pursuit, compiled by Numba; omp.py allocates, checks and calls.

n rows of a cluster, D feature dimension, s rows chosen in this round (members), u candidate rows of a local pursuit,
m = s + u rows of it. No kernel is `parallel`: callers cut the rows up and run blocks on threads, because
Numba's default threading layer must not be entered from two threads at once.

Arrays are copied by loops, not by slices: Numba compiles the error message of a slice assignment, with the formatting of shapes,
into every kernel, which took a quarter of the compilation. `Local` has two types (see its rows); helpers that need only a few of
its arrays take these, and are compiled once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

REACHED, REPEATED, DROPPED, STOPPED = 0, 1, 2, 3  # why `pursue` returned: tolerance; a member won; a row left; out of probes

TIE = 1e-11  # relative to |a_j| |b|: far above float64 rounding, far below any difference that means something


class Fit(NamedTuple):
    """The fit of the round's members, changed in place. `held` (1,) says how many leading entries are valid."""

    factor: np.ndarray  # (k, k) float64, lower triangle: Cholesky factor of the members' Gram matrix + ridge
    forward: np.ndarray  # (k,) float64: factor^-1 <a_members, b>
    weights: np.ndarray  # (k,) float64
    members: np.ndarray  # (k,) int64, rows of the local pursuit in order of choice
    held: np.ndarray  # (1,) int64: members
    penalty: np.ndarray  # (1,) float64: the ridge that `weights` were solved with; 0 after the first, unregularised step


class Local(NamedTuple):
    """A pursuit restricted to u candidate rows, p of which have a Gram column; the others stand in a list.

    Of its m = s + u rows those from 0 on are the s members it starts with, those from s on the candidates, first the p.
    """

    rows: np.ndarray  # (s + probes, u) float64 or float32: products of the members with every candidate; the rest is written
    known: np.ndarray  # (p, p) float64: inner products of candidates that have a column
    cross: np.ndarray  # (p, u - p) float32: of those with the candidates in the list
    listed: np.ndarray  # (l, l) float32: of all rows in the list
    places: np.ndarray  # (u - p,) int64: where the list's candidates stand in it
    target: np.ndarray  # (m,) float64: <a, b>
    norm: np.ndarray  # (m,) float64: |a|
    row: np.ndarray  # (m,) int64: index in the cluster, decides ties


class Log(NamedTuple):
    """What each probe (one search for the argmax) saw and did; t-th row for the t-th probe."""

    weights: np.ndarray  # (probes + 1, m) float64, zeroed by the caller: the weights before the probe, one more for the end
    members: np.ndarray  # (probes + 1, k) int64: the members before the probe, in order
    held: np.ndarray  # (probes + 1,) int64: how many
    penalty: np.ndarray  # (probes + 1,) float64
    pick: np.ndarray  # (probes,) int64, row of the local pursuit
    correlation: np.ndarray  # (probes,) float64
    residual: np.ndarray  # (probes,) float64: |r|^2 / |b|^2 after the step


class Limits(NamedTuple):
    """Where a round of the pursuit ends."""

    probes: int
    steps: int  # steps that the round may still take
    ridge: float
    tol: float
    target_length: float  # |b|
    residual: float  # |r|^2 / |b|^2 now
    keep: bool  # return before a row would be dropped (a draft must not touch the factor of the members it was given)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _append(fit: Fit, products: np.ndarray, diagonal: float, target: float, floor: float) -> None:
    """Add a row to the factor: products (s,) with the members, diagonal |a|^2 + ridge, target <a, b>.

    The squared pivot is a Schur complement of Gram + ridge and so at least the ridge, `floor`; rounding, or the rounded
    products of a draft, may say less.
    """
    s = fit.held[0]
    factor = fit.factor
    pivot = diagonal
    value = target
    for i in range(s):
        total = products[i]
        for j in range(i):
            total -= factor[i, j] * factor[s, j]
        factor[s, i] = total / factor[i, i]
        pivot -= factor[s, i] * factor[s, i]
        value -= factor[s, i] * fit.forward[i]
    factor[s, s] = np.sqrt(max(pivot, floor))
    fit.forward[s] = value / factor[s, s]
    fit.held[0] = s + 1


@njit(nogil=True, cache=True)
def _remove(fit: Fit, place: int) -> None:
    """Downdate: take the member at `place` out of the factor by plane rotations of neighbouring columns."""
    s = fit.held[0]
    factor = fit.factor
    for i in range(place, s - 1):
        fit.members[i] = fit.members[i + 1]
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for j in range(place, s - 1):
        length = np.hypot(factor[j, j], factor[j, j + 1])
        cosine = factor[j, j] / length
        sine = factor[j, j + 1] / length
        for i in range(j, s - 1):
            left = factor[i, j]
            factor[i, j] = cosine * left + sine * factor[i, j + 1]
            factor[i, j + 1] = cosine * factor[i, j + 1] - sine * left
        left = fit.forward[j]
        fit.forward[j] = cosine * left + sine * fit.forward[j + 1]
        fit.forward[j + 1] = cosine * fit.forward[j + 1] - sine * left
    fit.held[0] = s - 1


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _solve(fit: Fit) -> None:
    """Back substitution: weights = factor'^-1 forward, by rows of the factor, which lie together in memory."""
    s = fit.held[0]
    for i in range(s):
        fit.weights[i] = fit.forward[i]
    for i in range(s - 1, -1, -1):
        fit.weights[i] /= fit.factor[i, i]
        value = fit.weights[i]
        for j in range(i):
            fit.weights[j] -= value * fit.factor[i, j]


@njit(nogil=True, cache=True)
def _most_negative(fit: Fit) -> int:
    """Place of the most negative weight, of equal ones the first; -1 where none is negative beyond rounding."""
    least, largest = np.inf, 0.0
    for i in range(fit.held[0]):
        least = min(least, fit.weights[i])
        largest = max(largest, abs(fit.weights[i]))
    slack = TIE * largest
    if least >= -slack:
        return -1
    for i in range(fit.held[0]):
        if fit.weights[i] <= least + slack:
            return i
    return -1


@njit(nogil=True, cache=True)
def _argmax(
    row: np.ndarray, norm: np.ndarray, fit: Fit, correlations: np.ndarray, inside: np.ndarray, slack: float
) -> tuple[int, float]:
    """Row of the local pursuit with the largest correlation, and that; of tied rows the lowest of the cluster. -1: no rows."""
    s0 = row.size - correlations.size
    best, top = -1, -np.inf
    for i in range(fit.held[0]):
        if fit.penalty[0] * fit.weights[i] > top:
            best, top = fit.members[i], fit.penalty[0] * fit.weights[i]
    for v in range(correlations.size):
        if not inside[v] and correlations[v] > top:
            best, top = s0 + v, correlations[v]
    if best < 0:
        return best, top
    pick, value = best, top
    for i in range(fit.held[0]):
        j, correlation = fit.members[i], fit.penalty[0] * fit.weights[i]
        if row[j] < row[pick] and top - correlation <= slack * max(norm[j], norm[best]):
            pick, value = j, correlation
    for v in range(correlations.size):
        j = s0 + v
        tied = top - correlations[v] <= slack * max(norm[j], norm[best])
        if tied and not inside[v] and row[j] < row[pick]:
            pick, value = j, correlations[v]
    return pick, value


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _correlate(local: Local, fit: Fit, place: np.ndarray, correlations: np.ndarray) -> None:
    """<a, r> of every candidate from the members' products; those of member j stand in row place[j]."""
    u = correlations.size
    s0 = local.row.size - u
    s = fit.held[0]
    for v in range(u):
        correlations[v] = local.target[s0 + v]
    for i in range(0, s - 3, 4):  # four at once: a correlation is read and written once for them
        w, x, y, z = fit.weights[i], fit.weights[i + 1], fit.weights[i + 2], fit.weights[i + 3]
        a, b = local.rows[place[fit.members[i]]], local.rows[place[fit.members[i + 1]]]
        c, d = local.rows[place[fit.members[i + 2]]], local.rows[place[fit.members[i + 3]]]
        for v in range(u):
            correlations[v] -= w * a[v] + x * b[v] + y * c[v] + z * d[v]
    for i in range(s - s % 4, s):
        weight = fit.weights[i]
        row = local.rows[place[fit.members[i]]]
        for v in range(u):
            correlations[v] -= weight * row[v]


@njit(nogil=True, cache=True)
def _fetch(local: Local, candidate: int, out: np.ndarray) -> None:
    """Inner products (u,) of a candidate with all."""
    p = local.known.shape[0]
    if candidate < p:
        for i in range(p):
            out[i] = local.known[candidate, i]
        for v in range(local.places.size):
            out[p + v] = local.cross[candidate, v]
        return
    for i in range(p):
        out[i] = local.cross[i, candidate - p]
    products = local.listed[local.places[candidate - p]]
    for v in range(local.places.size):
        out[p + v] = products[local.places[v]]


@njit(nogil=True, cache=True)
def gather(columns: np.ndarray, slots: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out[i, v] = columns[slots[i], rows[v]]."""
    for i in range(slots.size):
        column = columns[slots[i]]
        for v in range(rows.size):
            out[i, v] = column[rows[v]]


@njit(nogil=True, cache=True)
def _note(log: Log, fit: Fit, t: int) -> None:
    s = fit.held[0]
    log.held[t] = s
    log.penalty[t] = fit.penalty[0]
    for i in range(s):
        log.members[t, i] = fit.members[i]
        log.weights[t, fit.members[i]] = fit.weights[i]


@njit(nogil=True, cache=True)
def _squared_residual(target: np.ndarray, fit: Fit, target_length: float) -> float:
    """|b - A_S' x|^2 / |b|^2. Where x solves (G + p) x = c it is |b|^2 - x'c - p |x|^2; so it is with p = 0 and one member."""
    value = target_length * target_length
    for i in range(fit.held[0]):
        weight = fit.weights[i]
        value -= weight * target[fit.members[i]] + fit.penalty[0] * weight * weight
    return max(value, 0.0) / (target_length * target_length)


@njit(nogil=True, cache=True)
def pursue(local: Local, fit: Fit, log: Log, limits: Limits) -> tuple[int, int]:
    """Do the steps of one round of docs/method.md on the candidates of `local`, each step logged; `fit` is advanced.

    Returns
    -------
    probes, reason
        Probes made, and REACHED | REPEATED | DROPPED | STOPPED. REPEATED also covers the newest row leaving at once: both end
        the round, and the last probe logged is the one that ended it. DROPPED: an older row left and the round goes on;
        the caller must rebuild `local`, because that row is a candidate again.
    """
    u = local.rows.shape[1]
    s0 = local.row.size - u
    correlations = np.empty(u)
    place = np.empty(local.row.size, np.int64)
    for j in range(s0):
        place[j] = j
    inside = np.zeros(u, np.bool_)
    residual = limits.residual
    products = np.empty(fit.weights.size)
    for t in range(limits.probes):
        _note(log, fit, t)
        if t >= limits.steps or np.sqrt(residual) < limits.tol:
            return t, REACHED
        _correlate(local, fit, place, correlations)
        pick, value = _argmax(local.row, local.norm, fit, correlations, inside, TIE * limits.target_length)
        if pick < 0:
            return t, STOPPED
        log.pick[t] = pick
        log.correlation[t] = value
        if pick < s0 or inside[pick - s0]:
            return t + 1, REPEATED
        s = fit.held[0]
        for i in range(s):
            products[i] = local.rows[place[fit.members[i]], pick - s0]
        _append(fit, products, local.norm[pick] ** 2 + limits.ridge, local.target[pick], limits.ridge)
        fit.members[s] = pick
        inside[pick - s0] = True
        place[pick] = s0 + t
        _fetch(local, pick - s0, local.rows[s0 + t])
        if s == 0:
            square = local.norm[pick] ** 2
            fit.weights[0] = value / square if square > 0.0 else 0.0
            fit.penalty[0] = 0.0
        else:
            fit.penalty[0] = limits.ridge
            _solve(fit)
            dropped = False
            while True:
                worst = _most_negative(fit)
                if worst < 0:
                    break
                if limits.keep:
                    fit.held[0] = s
                    return t + 1, DROPPED
                newest = worst == fit.held[0] - 1
                if newest:
                    fit.held[0] -= 1
                    return t + 1, REPEATED
                _remove(fit, worst)
                dropped = True
                _solve(fit)
            if dropped:
                log.residual[t] = _squared_residual(local.target, fit, limits.target_length)
                _note(log, fit, t + 1)
                return t + 1, DROPPED
        residual = _squared_residual(local.target, fit, limits.target_length)
        log.residual[t] = residual
    _note(log, fit, limits.probes)
    return limits.probes, STOPPED


def compiled() -> bool:
    """Whether the kernels run as machine code (not under NUMBA_DISABLE_JIT=1)."""
    kernel: Any = pursue
    return hasattr(kernel, "signatures")
