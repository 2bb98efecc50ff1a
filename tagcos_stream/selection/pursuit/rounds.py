"""Rounds of the matching pursuit by draft and proof.

A *draft* runs the next steps among a short list of likely rows, whose inner products are known in 16 bits, and says which they
would choose. A *stretch* of exact steps then runs on drafted rows only, and its *proof* holds every step's choice against all
rows, by their products with the residual of every step: by bytes, which rules out nearly all, in float32 for those that remain,
and in float64 where float32 cannot tell. From the first wrong step on all is taken back; rows that would have won there join
the list. So the choices are those of exact arithmetic, whatever the draft, the block sizes or the number of threads.

n rows of a cluster, D feature dimension, p slots, s members of the round, T probes of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tagcos_stream.rows import kernels as row_kernels
from tagcos_stream.rows.held import Rows
from tagcos_stream.selection.pursuit import kernels
from tagcos_stream.selection.pursuit.gram_cache import Shortlist, Slots
from tagcos_stream.selection.pursuit.int8_rows import PROBES, RoundedRows

LONGEST = 64  # most steps drafted at once
HORIZON = 24  # steps of a round's first draft, twice the fewest of all later ones
GROW = 1.25  # steps of a draft for each that the last proof let stand
CANDIDATES = 128  # rows that join the short list for each draft, by their correlation
SUBTRACTED = 128  # members that a thread subtracts from a residual at once
COMPARED = 1024  # rows that a proof compares in float32 at once


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
        """Euclidean length of the target."""
        return float(np.sqrt(self.target @ self.target))


@dataclass
class Counts:
    """What the pursuit spent."""

    taken_back: int = 0
    compared: int = 0  # pairs of a step and a row that bytes did not rule out
    exact_checks: int = 0


class Round:
    """One round of docs/method.md: `run` returns its members in order of choice; `story` lists the steps of each."""

    def __init__(
        self,
        problem: Problem,
        rounded: RoundedRows,
        store: Slots,
        shortlist: Shortlist,
        fit: kernels.Fit,
        counts: Counts,
        steps: int,
    ) -> None:
        self.problem, self.rounded, self.fit, self.counts = problem, rounded, fit, counts
        self.store, self.shortlist = store, shortlist
        self.left = steps
        self.residual = 1.0  # |r|^2 / |b|^2
        self.members = np.empty(0, np.int64)  # slots, in order of choice
        self.scores = problem.products.astype(np.float32)  # correlations of all rows with the residual now, roughly
        self.rest = problem.target.astype(np.float32)  # that residual
        self.horizon = HORIZON  # steps that the next draft tries
        self.rivals = np.empty(0, np.int64)  # rows that won against the last stretch's choices somewhere
        self.story: dict[int, tuple[float, float]] = {}  # row -> correlation when chosen, |r|/|b| after
        fit.held[0], fit.penalty[0] = 0, 0.0

    def run(self, progress: Callable[[int], None]) -> np.ndarray:
        """(s,) rows; empty where the first one did not last. `progress` gets the number of members so far."""
        missed = np.empty(0, np.int64)
        while True:
            wanted, probes = self._draft()
            wanted = np.union1d(wanted, missed)
            if len(wanted) > self.store.room:
                self._make_room(len(wanted))
            if len(wanted):
                self.store.add(wanted)
                self.shortlist.hand_over(wanted)
            ended, missed = self._stretch(probes)
            progress(len(self.members))
            if ended:
                return self.store.row[self.members]

    def _unused(self) -> np.ndarray:
        """Slots that may be chosen and are not members."""
        free = self.store.open[: self.store.size].copy()
        free[self.members] = False
        return np.flatnonzero(free)

    def _make_room(self, count: int) -> None:
        """Forget closed slots, and of the unused ones those that correlate least with the residual."""
        unused = self._unused()
        keep = max(self.store.size - max(count, len(self.store.row) // 8) - len(self.members), 0)
        best = unused[np.argsort(-self.scores[self.store.row[unused]], kind="stable")[:keep]]
        kept = np.sort(np.concatenate([self.members, best]))
        moved = self.store.keep(kept)
        self.shortlist.keep(kept)
        self.members = moved[self.members]

    def _draft(self) -> tuple[np.ndarray, int]:
        """The rows without a slot (B,) that the next steps would likely choose, and how many probes that takes."""
        problem, store, shortlist = self.problem, self.store, self.shortlist
        free = problem.open & (store.slot_of < 0)
        scores = np.where(free, self.scores, -np.inf)
        count = min(CANDIDATES, int(free.sum()))
        likely = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, np.int64)
        wanted = np.union1d(likely, self.rivals[free[self.rivals]][:CANDIDATES])
        probes = min(self.horizon, self.left)
        shortlist.add(wanted)
        places = np.flatnonzero(free[shortlist.row[: shortlist.size]])
        fit, s = self.fit, len(self.members)
        weights, penalty = fit.weights[:s].copy(), fit.penalty[0]
        correlations = shortlist.correlations(self.rest)[places]
        log, made, _, rows = self._pursue(places, correlations, probes, np.float32, keep=True)
        fit.held[0], fit.penalty[0], fit.weights[:s] = s, penalty, weights
        picks = rows[log.pick[:made]]
        return np.unique(picks[store.slot_of[picks] < 0]), made

    def _pursue(
        self, places: np.ndarray, correlations: np.ndarray, probes: int, dtype: type, *, keep: bool
    ) -> tuple[kernels.Log, int, int, np.ndarray]:
        """Do steps on members, unused slots and rows of the short list by their places (v,), which are not members.

        The listed rows start from the correlations (v,) that they have now: what their products with members lack in
        accuracy then counts for the change of the weights only.

        Returns
        -------
        log, probes, reason, rows
            The log, probes made, why it ended, and the rows (m,) that the log's numbers stand for: members, then unused slots,
            then the list's.
        """
        problem, store, members = self.problem, self.store, self.members
        unused, listed = self._unused(), self.shortlist.row[places]
        s, p = len(members), len(unused)
        products: np.ndarray = np.empty((s + probes, p + len(listed)), dtype)
        products[:s, :p] = store.gram[np.ix_(members, unused)]
        cross = np.empty((p, len(listed)), np.float32)
        for slots, out in ((members, products[:s, p:]), (unused, cross)):
            self._gather(slots, places, out)
        rows = np.concatenate([store.row[members], store.row[unused], listed])
        known = store.gram[np.ix_(unused, unused)]
        target = problem.products[rows]
        if s and len(listed):
            target[s + p :] = correlations + self.fit.weights[:s].astype(dtype) @ products[:s, p:]
        local = kernels.Local(products, known, cross, self.shortlist.gram, places, target, problem.norm[rows], rows)
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

    def _gather(self, slots: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Write the products of the slots' rows with listed ones into out (p, v)."""

        def gather(start: int) -> None:
            part = slice(start, start + 64)
            kernels.gather(self.shortlist.cross, slots[part], places, out[part])

        if len(places):
            self.problem.rows.each(gather, range(0, len(slots), 64))

    def _stretch(self, probes: int) -> tuple[bool, np.ndarray]:
        """Do exact steps on the drafted rows, then their proof.

        Returns
        -------
        ended, row
            Whether the round ended, and the row (1,) or none (0,) that should have been chosen and has no slot.
        """
        store = self.store
        log, made, status, rows = self._pursue(np.empty(0, np.int64), np.empty(0), max(probes, 1), np.float64, keep=False)
        slots = store.slot_of[rows]
        states = made + (status != kernels.REPEATED)
        weights = np.zeros((states, store.size))
        weights[:, slots] = log.weights[:states]
        good, missed = self._prove(weights, slots[log.pick[:made]], log.correlation[:made])
        self.horizon = min(LONGEST, max(HORIZON // 2, int(GROW * good)))
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

    def _residuals(self, weights: np.ndarray) -> np.ndarray:
        """Return the residual b - A'x for every x of `weights` (T, p) by slot: (T, D) float32."""
        store, target = self.store, self.problem.target
        used = np.flatnonzero(weights.any(axis=0))
        span = slice(0, used[-1] + 1) if len(used) else slice(0, 0)
        part = weights[:, span].astype(np.float32)
        out = np.empty((len(weights), len(target)), np.float32)
        share = self.problem.rows.share(len(target))

        def subtract(at: int) -> None:
            here = slice(at, at + share)
            out[:, here] = target[here] - part @ store.features[span, here]

        self.problem.rows.each(subtract, range(0, len(target), share))
        return out

    def _residual(self, weights: np.ndarray) -> np.ndarray:
        """Return the residual b - A'x for x (p,) by slot: (D,) float64."""
        used = np.flatnonzero(weights)
        parts = np.zeros((-(-len(used) // SUBTRACTED), len(self.problem.target)))

        def subtract(at: int) -> None:
            some = used[at : at + SUBTRACTED]
            row_kernels.subtract(self.store.features, some, weights[some], parts[at // SUBTRACTED])

        self.problem.rows.each(subtract, range(0, len(used), SUBTRACTED))
        return self.problem.target + parts.sum(axis=0)

    def _prove(self, weights: np.ndarray, picks: np.ndarray, values: np.ndarray) -> tuple[int, np.ndarray]:
        """Compare every probe's choice with all rows that have no slot.

        Parameters
        ----------
        weights
            (T or T + 1, p) float64 by slot, before each probe.
        picks
            (T,) slots.
        values
            (T,) correlations.

        Returns
        -------
        right, row
            How many leading probes chose rightly, and the row (1,) that the next should have chosen, or none (0,).
            `scores` become the correlations at the last state reached.
        """
        residuals = self._residuals(weights)
        near, at, good, missed = [], 0, 0, np.empty(0, np.int64)
        while at < len(weights) and not missed.size:
            here = slice(at, at + PROBES)
            some, missed, rows = self._prove_some(residuals[here], weights[here], picks[here], values[here])
            near.append(rows)
            at, good = at + PROBES, good + some
        rival, often = np.unique(np.concatenate(near), return_counts=True)
        self.rivals = rival[np.argsort(-often, kind="stable")]
        return good, missed

    def _prove_some(
        self, residuals: np.ndarray, weights: np.ndarray, picks: np.ndarray, values: np.ndarray
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """`_prove` for at most PROBES states; also every row (m,), as often as it came near a pick."""
        problem, store, rounded = self.problem, self.store, self.rounded
        rounded.probe(residuals)
        made = len(picks)
        length = np.linalg.norm(residuals[:made].astype(np.float64), axis=1)
        # float32 rounding of a sum of many parts, with room to spare: of a residual, and of a product with one, for |a| = 1
        unit = 2.0**-24 * (8 + np.sqrt(np.array([store.size, problem.rows.dim])) / 4)
        blur = unit[0] * (np.abs(weights[:made]) @ problem.norm[store.row[: store.size]] + problem.length)
        doubt = blur + unit[1] * length
        bound = values - kernels.TIE * problem.length * problem.norm[store.row[picks]]
        pairs = rounded.reaching(length, blur, bound, problem.norm)
        pairs = pairs[(problem.open & (store.slot_of < 0))[pairs[:, 1]]]
        self.counts.compared += len(pairs)
        probe, row, rough = self._compare(pairs, residuals, doubt, bound)
        for t in np.unique(probe):
            here = probe == t
            missed = self._better(row[here], rough[here], doubt[t], weights[t], int(picks[t]), values[t])
            if missed.size:
                self.scores, self.rest = rounded.correlations(int(t)), residuals[t]
                return int(t), missed, row
        self.scores, self.rest = rounded.correlations(len(weights) - 1), residuals[-1]
        return made, np.empty(0, np.int64), row

    def _compare(
        self, pairs: np.ndarray, residuals: np.ndarray, doubt: np.ndarray, bound: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of pairs (m, 2) of a probe and a row, those that may reach the bound by float32: probes, rows, correlations."""
        problem = self.problem
        rows, which = np.unique(pairs[:, 1], return_inverse=True)
        values = np.empty(len(pairs))
        for start in range(0, len(rows), COMPARED):
            here = np.flatnonzero((which >= start) & (which < start + COMPARED))
            products = problem.rows.product(problem.rows.take(rows[start : start + COMPARED]), residuals)
            values[here] = products[which[here] - start, pairs[here, 0]]
        probe, row = pairs[:, 0], pairs[:, 1]
        near = values + doubt[probe] * problem.norm[row] >= bound[probe]
        return probe[near], row[near], values[near]

    def _better(
        self, rows: np.ndarray, rough: np.ndarray, doubt: float, weights: np.ndarray, pick: int, value: float
    ) -> np.ndarray:
        """Of rows (q,) that might correlate more than the pick, the one (1,) that does and would be chosen, or none (0,).

        rough: (q,) their correlations, `doubt` times their length from the exact ones at most.
        """
        problem, store = self.problem, self.store
        best = int(np.argmax(rough))
        if rough[best] - doubt * problem.norm[rows[best]] > value:
            return rows[best : best + 1]
        self.counts.exact_checks += 1
        left = self._residual(weights)
        exact = np.empty(len(rows))
        for start in range(0, len(rows), COMPARED):
            part = rows[start : start + COMPARED]
            row_kernels.dots(problem.rows.take(part), left, exact[start : start + COMPARED])
        rows, exact = np.append(rows, store.row[pick]), np.append(exact, value)
        top = int(np.argmax(exact))
        tied = exact[top] - exact <= kernels.TIE * problem.length * np.maximum(problem.norm[rows], problem.norm[rows[top]])
        winner = rows[tied].min()
        return np.empty(0, np.int64) if winner == store.row[pick] else np.array([winner])
