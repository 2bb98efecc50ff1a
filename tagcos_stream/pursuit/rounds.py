"""Rounds of the matching pursuit by draft, product and proof.

A *draft* runs the next steps among a short list of likely rows, whose inner products are known, and says which they would
choose. One matrix product computes the Gram columns of those. A *stretch* of exact steps then runs on rows with known columns
only, and its *proof* compares every step's choice with all rows, by one matrix product for the whole stretch; steps from the
first wrong one on are taken back, and every row that would have won at any of them joins the list. Where float32 cannot tell,
rows are compared in float64, so that the choices are those of exact arithmetic, whatever the draft, the block sizes or the
number of threads.

n rows of a cluster, D feature dimension, p slots, s members of the round, u candidates, T probes of a stretch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tagcos_stream.pursuit import kernels, row_kernels
from tagcos_stream.pursuit.rows import Rows
from tagcos_stream.pursuit.store import GramStore, Shortlist

PROBES = 128  # most steps drafted and proved at once
HORIZON = 32  # steps of a round's first draft, twice the fewest of all later ones
GROW = 1.5  # steps of a draft for each that the last proof let stand
CANDIDATES = 192  # rows that join the short list for each draft, by their correlation
CORRELATIONS_BYTES = 64 << 20  # what a proof may hold: T x n float32
SPAN = 2048  # rows a proof multiplies at once


@dataclass
class Problem:
    """What stays fixed in a pursuit, and which rows may be chosen."""

    rows: Rows
    target: np.ndarray  # (D,) float64
    products: np.ndarray  # (n,) float64: <a, b>
    norm: np.ndarray  # (n,) float64: |a|
    open: np.ndarray  # (n,) bool: neither chosen in an earlier round nor the copy of a lower open row
    ridge: float
    tol: float

    @property
    def length(self) -> float:
        return float(np.sqrt(self.target @ self.target))


@dataclass
class Counts:
    """What the pursuit spent."""

    drafts: int = 0
    probes: int = 0
    taken_back: int = 0
    exact_checks: int = 0


class Round:
    """One round of DESIGN section 3: `run` returns its members in order of choice; `story` tells each one's."""

    def __init__(
        self, problem: Problem, store: GramStore, shortlist: Shortlist, fit: kernels.Fit, counts: Counts, steps: int
    ) -> None:
        self.problem, self.store, self.shortlist, self.fit, self.counts = problem, store, shortlist, fit, counts
        self.left = steps
        self.residual = 1.0  # |r|^2 / |b|^2
        self.members = np.empty(0, np.int64)  # slots, in order of choice
        self.scores = problem.products.astype(np.float32)  # correlations of all rows with the residual now
        self.horizon = HORIZON  # steps that the next draft tries
        self.rivals = np.empty(0, np.int64)  # rows that won against the last stretch's choices somewhere
        self.story: dict[int, tuple[float, float]] = {}  # row -> correlation when chosen, |r|/|b| after
        fit.held[0], fit.penalty[0] = 0, 0.0

    def run(self) -> np.ndarray:
        """(s,) rows; empty where the first one did not last."""
        missed = np.empty(0, np.int64)
        while True:
            wanted, probes = self._draft()
            wanted = np.union1d(wanted, missed)
            if len(wanted) > self.store.room:
                self._make_room(len(wanted))
            if len(wanted):
                self.store.add(wanted)
                self.shortlist.remove(wanted)
            ended, missed = self._stretch(probes)
            if ended:
                return self.store.row[self.members]

    def _unused(self) -> np.ndarray:
        """Slots that may be chosen and are no members."""
        free = self.store.open[: self.store.size].copy()
        free[self.members] = False
        return np.flatnonzero(free)

    def _make_room(self, count: int) -> None:
        """Forget closed slots, and of the unused ones those that correlate least with the residual."""
        unused = self._unused()
        keep = max(self.store.size - max(count, len(self.store.row) // 8) - len(self.members), 0)
        best = unused[np.argsort(-self.scores[self.store.row[unused]], kind="stable")[:keep]]
        moved = self.store.keep(np.sort(np.concatenate([self.members, best])))
        self.members = moved[self.members]

    def _draft(self) -> tuple[np.ndarray, int]:
        """The rows without a column (B,) that the next steps would likely choose, and how many probes that takes."""
        problem, store, shortlist = self.problem, self.store, self.shortlist
        self.counts.drafts += 1
        free = problem.open & (store.slot_of < 0)
        scores = np.where(free, self.scores, -np.inf)
        count = min(CANDIDATES, int(free.sum()))
        likely = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, np.int64)
        wanted = np.union1d(likely, self.rivals[free[self.rivals]][:CANDIDATES])
        probes = min(self.horizon, self._longest_stretch(), self.left)
        shortlist.add(wanted)
        places = np.flatnonzero(free[shortlist.row[: shortlist.size]])
        fit, s = self.fit, len(self.members)
        weights, penalty = fit.weights[:s].copy(), fit.penalty[0]
        log, made, _, rows = self._pursue(places, probes, np.float32, keep=True)
        fit.held[0], fit.penalty[0], fit.weights[:s] = s, penalty, weights
        picks = rows[log.pick[:made]]
        return np.unique(picks[store.slot_of[picks] < 0]), made

    def _correlations(self, weights: np.ndarray) -> np.ndarray:
        """<a_j, b - A'x> for every row and every x of `weights` (T, p) by slot: (T, n) float32."""
        store, n = self.store, self.problem.rows.n
        used = weights.astype(np.float32)
        out = np.empty((len(weights), n), np.float32)
        parts = [slice(low, min(low + PROBES, store.size)) for low in range(0, store.size, PROBES)]
        parts = [part for part in parts if used[:, part].any()]

        def fill(start: int) -> None:
            here = slice(start, min(start + SPAN, n))
            out[:, here] = self.problem.products[here]
            for part in parts:
                out[:, here] -= used[:, part] @ store.columns[part, here]

        self.problem.rows.each(fill, range(0, n, SPAN))
        return out

    def _longest_stretch(self) -> int:
        return max(1, CORRELATIONS_BYTES // (4 * self.problem.rows.n) - 1)

    def _pursue(self, places: np.ndarray, probes: int, dtype: type, *, keep: bool) -> tuple[kernels.Log, int, int, np.ndarray]:
        """Steps on members, unused slots and rows of the short list by their places (v,), which are not members.

        Returns:
            log, probes made, why it ended, and the rows (m,) that the log's numbers stand for: members, then unused slots,
            then the list's.
        """
        problem, store, members = self.problem, self.store, self.members
        unused, listed = self._unused(), self.shortlist.row[places]
        s, p = len(members), len(unused)
        products: np.ndarray = np.empty((s + probes, p + len(listed)), dtype)
        products[:s, :p] = store.gram[np.ix_(members, unused)]
        cross = np.empty((p, len(listed)), np.float32)
        for slots, out in ((members, products[:s, p:]), (unused, cross)):
            self._gather(slots, listed, out)
        rows = np.concatenate([store.row[members], store.row[unused], listed])
        known = store.gram[np.ix_(unused, unused)]
        local = kernels.Local(
            products, known, cross, self.shortlist.gram, places, problem.products[rows], problem.norm[rows], rows
        )
        capacity = len(self.fit.weights)
        self.fit.members[:s] = np.arange(s)
        log = kernels.Log(
            np.zeros((probes + 1, len(rows))),
            np.empty((probes + 1, capacity), np.int64),
            np.empty(probes + 1, np.int64),
            np.empty(probes + 1),
            np.empty(probes, np.int64),
            np.empty(probes),
            np.empty(probes),
        )
        limits = kernels.Limits(probes, self.left, problem.ridge, problem.tol, problem.length, self.residual, keep)
        made, status = kernels.pursue(local, self.fit, log, limits)
        return log, made, status, rows

    def _gather(self, slots: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        """out (p, v) = products of the slots' rows with others."""

        def gather(start: int) -> None:
            part = slice(start, start + 64)
            kernels.gather(self.store.columns, slots[part], rows, out[part])

        if len(rows):
            self.problem.rows.each(gather, range(0, len(slots), 64))

    def _stretch(self, probes: int) -> tuple[bool, np.ndarray]:
        """Exact steps on the rows with columns, then their proof.

        Returns:
            whether the round ended, and the row (1,) or none (0,) that should have been chosen and has no column.
        """
        store = self.store
        log, made, status, rows = self._pursue(np.empty(0, np.int64), max(probes, 1), np.float64, keep=False)
        slots = store.slot_of[rows]
        states = made + (status != kernels.REPEATED)
        weights = np.zeros((states, store.size))
        weights[:, slots] = log.weights[:states]
        good, missed = self._prove(weights, slots[log.pick[:made]], log.correlation[:made])
        self.counts.probes += good
        self.horizon = min(PROBES, max(HORIZON // 2, int(GROW * good)))
        self.counts.taken_back += made - good
        for t in range(good - (good == made and status == kernels.REPEATED)):
            self.story[int(store.row[slots[log.pick[t]]])] = float(log.correlation[t]), float(np.sqrt(log.residual[t]))
            self.residual = float(log.residual[t])
            self.left -= 1
        if good < made:
            self._take_back(log, good, slots)
        self.members = slots[self.fit.members[: self.fit.held[0]]]
        return good == made and status in (kernels.REACHED, kernels.REPEATED), missed

    def _take_back(self, log: kernels.Log, t: int, slots: np.ndarray) -> None:
        """Return the fit to its state before probe t."""
        fit, s = self.fit, int(log.held[t])
        members = log.members[t, :s].copy()
        fit.penalty[0] = log.penalty[t]
        fit.weights[:s] = log.weights[t, members]
        if s > fit.held[0] or (fit.members[:s] != members).any():  # else the leading block is still this state's factor
            order = slots[members]
            system = self.store.gram[np.ix_(order, order)] + self.problem.ridge * np.eye(s)
            fit.factor[:s, :s] = np.linalg.cholesky(system)  # zeroes the upper half
            fit.forward[:s] = np.linalg.solve(fit.factor[:s, :s], self.problem.products[self.store.row[order]])
        fit.members[:s] = members
        fit.held[0] = s

    def _prove(self, weights: np.ndarray, picks: np.ndarray, values: np.ndarray) -> tuple[int, np.ndarray]:
        """Compare every probe's choice with all rows that have no column.

        Args:
            weights: (T or T + 1, p) float64 by slot, before each probe. picks: (T,) slots. values: (T,) correlations.

        Returns:
            how many leading probes chose rightly, and the row (1,) that the next should have chosen, or none (0,).
            `scores` become the correlations at the last state reached.
        """
        problem, store = self.problem, self.store
        made = len(picks)
        free = problem.open & (store.slot_of < 0)
        barred = np.where(free, np.float32(0), np.float32(-np.inf))
        # rounding of a float32 inner product of length D, with room to spare
        unit = np.float32(2.0**-24 * (8 + np.sqrt(problem.rows.dim) / 4))
        reach = (np.abs(weights) @ problem.norm[store.row[: store.size]] + problem.length)[:made, None].astype(np.float32)
        doubt = (unit * problem.norm).astype(np.float32)
        bound = (values - kernels.TIE * problem.length * problem.norm[store.row[picks]])[:, None].astype(np.float32)
        correlations = self._correlations(weights)
        near = [np.empty((2, 0), np.int64)]
        for start in range(0, problem.rows.n, SPAN):
            here = slice(start, start + SPAN)
            found = np.nonzero(correlations[:made, here] + reach * doubt[here] + barred[here] >= bound)
            near.append(np.stack(found) + np.array([[0], [start]]))
        probe, row = np.concatenate(near, axis=1)
        rival, often = np.unique(row, return_counts=True)
        self.rivals = rival[np.argsort(-often, kind="stable")]
        for t in np.unique(probe):
            missed = self._better(
                row[probe == t], correlations[t], float(reach[t, 0]) * doubt, weights[t], int(picks[t]), values[t]
            )
            if missed.size:
                self.scores = correlations[t]
                return int(t), missed
        self.scores = correlations[-1]
        return made, np.empty(0, np.int64)

    def _better(
        self, rows: np.ndarray, rough: np.ndarray, doubt: np.ndarray, weights: np.ndarray, pick: int, value: float
    ) -> np.ndarray:
        """Of rows (q,) that might correlate more than the pick, the one (1,) that does and would be chosen, or none (0,)."""
        problem, store = self.problem, self.store
        best = rows[np.argmax(rough[rows])]
        if rough[best] - doubt[best] > value:
            return np.array([best])
        self.counts.exact_checks += 1
        used = np.flatnonzero(weights)
        left = problem.target.copy()
        row_kernels.subtract(store.features, used, weights[used], left)
        exact = np.empty(len(rows))
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            row_kernels.dots(problem.rows.take(part), left, exact[start : start + 1024])
        rows, exact = np.append(rows, store.row[pick]), np.append(exact, value)
        top = int(np.argmax(exact))
        tied = exact[top] - exact <= kernels.TIE * problem.length * np.maximum(problem.norm[rows], problem.norm[rows[top]])
        winner = rows[tied].min()
        return np.empty(0, np.int64) if winner == store.row[pick] else np.array([winner])
