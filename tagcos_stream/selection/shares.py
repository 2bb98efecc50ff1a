"""Shares of datasets in a selection: smallest and largest parts of the budget, and weights.  Amounts are in units of the budget.

Bounds are kept by any method. It chooses as if there were none; where datasets end up above their maximum (or below their
minimum), these are fixed at that bound and chosen from separately, and all others share what is left of the budget, again as if
there were no bounds, until none is violated. Every round fixes a dataset, so there are at most as many rounds as datasets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from tagcos_stream.types import UserError

NUMBER = re.compile(r"(\d+)|(\d*\.\d+|\d+\.\d*)|(\d+(?:\.\d*)?)%")


@dataclass(frozen=True)
class Amount:
    """A part of a budget, as the user states it."""

    value: Fraction
    is_share: bool  # of the budget; else a number of its units

    def of(self, total: int) -> Fraction:
        """In units of a budget."""
        return self.value * total if self.is_share else self.value


@dataclass(frozen=True)
class Share:
    """What a user asks of one dataset."""

    minimum: Amount | None = None
    maximum: Amount | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest amount of a dataset, in units of the budget."""

    low: int
    high: int


def _parse_amount(text: str) -> Amount:
    """Read an amount: a share if it has a decimal point or %, else a number of units.

    Raises
    ------
    ValueError
        The text is neither.
    """
    found = NUMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not an amount: write a share such as 0.25 or 25%, or a whole number")
    count, share, percent = found.groups()
    if count is not None:
        return Amount(Fraction(count), False)
    value = Fraction(share) if share is not None else Fraction(percent) / 100
    if value > 1:
        raise ValueError(f"share {text} must be at most 1 (100%)")
    return Amount(value, True)


def parse_share(text: str) -> tuple[str, Share]:
    """Read `dataset=amount`, `dataset=minimum:maximum` or `dataset=minimum:maximum:weight`, of which any part may be empty.

    Raises
    ------
    ValueError
        The text has another form.
    """
    dataset, _, rest = text.rpartition("=")
    parts = [part.strip() for part in rest.split(":")]
    if not dataset or len(parts) > 3 or not any(parts):
        raise ValueError(f"{text!r} is not DATASET=MINIMUM:MAXIMUM, such as code=0.1:0.3, math=:500 or chat=20%")
    low, high, weight = parts * 2 + [""] if len(parts) == 1 else [*parts, ""][:3]
    try:
        factor = float(weight) if weight else None
    except ValueError:
        factor = math.nan
    if factor is not None and not 0 < factor < math.inf:
        raise ValueError(f"weight {weight!r} of dataset {dataset} must be a number above 0")
    return dataset, Share(_parse_amount(low) if low else None, _parse_amount(high) if high else None, factor)


def parse_shares(texts: Iterable[str]) -> dict[str, Share]:
    """Read the shares of several datasets.

    Raises
    ------
    ValueError
        A text has another form, or two name the same dataset.
    """
    found: dict[str, Share] = {}
    for text in texts:
        dataset, share = parse_share(text)
        if dataset in found:
            raise ValueError(f"dataset {dataset} is named twice")
        found[dataset] = share
    return found


def parse_tokens(text: str) -> int:
    """Read a number of tokens: digits, or a number with k, M or G.

    Raises
    ------
    ValueError
        The text is not a whole number of tokens above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)", text.strip())
    number = Fraction(0) if found is None else Fraction(found[1]) * 1000 ** ("", "k", "m", "g").index(found[2].lower())
    if number <= 0 or number.denominator != 1:
        raise ValueError(f"{text!r} is not a number of tokens: write 500000, 500k or 5M")
    return int(number)


def share_text(dataset: str, values: Mapping[str, object]) -> str:
    """Write a table of a settings file, with minimum, maximum and weight, in the form that `parse_share` reads.

    Raises
    ------
    ValueError
        A key has another name.
    """
    if unknown := sorted(set(values) - {"minimum", "maximum", "weight"}):
        raise ValueError(f"dataset {dataset} has {', '.join(unknown)}; a share has minimum, maximum and weight")
    return f"{dataset}=" + ":".join(str(values.get(name, "")) for name in ("minimum", "maximum", "weight"))


def require_datasets(shares: Iterable[str], there: Iterable[str]) -> None:
    """Refuse shares of datasets that a pool does not have.

    Parameters
    ----------
    shares
        Datasets with a share.
    there
        Datasets of the pool.

    Raises
    ------
    UserError
        One is not there; the message names those that are.
    """
    names = sorted(there)
    if unknown := sorted(set(shares).difference(names)):
        raise UserError(
            f"share of dataset {', '.join(unknown)}: the pool has no such dataset of which rows may be chosen, but "
            f"{', '.join(names[:20])}"
        )


def bounds_of(shares: Mapping[str, Share], total: int, there: Mapping[str, int], unit: str = "examples") -> dict[str, Bounds]:
    """Turn shares into bounds of every dataset.

    Minima are rounded up and maxima down, so that a selection of so many examples has at least and at most what was stated;
    where no whole number lies between the two, the nearest ones on both sides are the bounds.

    Parameters
    ----------
    shares
        By dataset.
    total
        The budget, at most the sum of `there`.
    there
        What each dataset of the pool has, by name.
    unit
        Of the amounts, for messages.

    Returns
    -------
    dict
        Bounds of every dataset of `there`, with low <= high <= what it has.

    Raises
    ------
    UserError
        A dataset has no row in the pool that may be chosen, or the bounds cannot all be met; the message has the numbers.
    """
    require_datasets(shares, there)
    found = {}
    for dataset, has in there.items():
        share = shares.get(dataset, Share())
        least = share.minimum.of(total) if share.minimum else Fraction(0)
        most = share.maximum.of(total) if share.maximum else Fraction(has)
        if share.minimum and share.maximum and least > most:
            raise UserError(
                f"share of dataset {dataset}: its minimum {float(least):g} is above its maximum {float(most):g} {unit}"
            )
        low, high = math.ceil(least), math.floor(most)
        if low > high:
            low, high = math.floor(least), math.ceil(most)
        if low > has:
            raise UserError(f"share of dataset {dataset}: its minimum is {low} {unit}, and the pool has {has} of it")
        found[dataset] = Bounds(low, min(high, has))
    lows, highs = sum(b.low for b in found.values()), sum(b.high for b in found.values())
    if lows > total:
        raise UserError(f"the minima of the datasets add up to {lows} {unit}, more than the budget of {total}: lower some")
    if highs < total:
        raise UserError(
            f"the datasets may give {highs} {unit} at most, less than the budget of {total}: raise a maximum or lower the budget"
        )
    return found


def bounds_with_pins(bounds: Mapping[str, Bounds], pinned: Mapping[str, int], total: int, unit: str) -> dict[str, Bounds]:
    """Raise minima to what pinned examples take.

    Parameters
    ----------
    bounds
        Of every dataset.
    pinned
        What its pinned examples take of the budget, by dataset.
    total
        The budget.
    unit
        Of the amounts, for messages.

    Returns
    -------
    dict
        Bounds of every dataset.

    Raises
    ------
    UserError
        Pinned examples exceed a maximum, or with the minima of other datasets the budget; the message has the numbers.
    """
    for dataset, bound in bounds.items():
        if pinned.get(dataset, 0) > bound.high:
            raise UserError(
                f"include pins {pinned[dataset]:,} {unit} of dataset {dataset}, whose maximum is {bound.high:,}: pin fewer, or "
                "raise its share"
            )
    found = {dataset: Bounds(max(bound.low, pinned.get(dataset, 0)), bound.high) for dataset, bound in bounds.items()}
    if (least := sum(bound.low for bound in found.values())) > total:
        raise UserError(
            f"the pinned examples and the minima of the datasets take {least:,} {unit}, more than the budget of {total:,}: pin "
            "fewer, or lower a minimum"
        )
    return found


def fix(bounds: Mapping[str, Bounds], chosen: Mapping[str, int], fixed: Iterable[str]) -> dict[str, int]:
    """Say which datasets are to be fixed at a bound, after a choice in which they were free.

    If together they exceed their maxima by more than they lack of their minima, those above are fixed, otherwise those below:
    what is left of the budget then remains enough for the minima of the others, and not too much for their maxima.

    Parameters
    ----------
    bounds
        Of every dataset.
    chosen
        Amount that was chosen of each.
    fixed
        Datasets that were fixed before.

    Returns
    -------
    dict
        Amount by dataset; empty if no bound is violated.
    """
    free = sorted(set(bounds) - set(fixed))
    above = {name: chosen.get(name, 0) - bounds[name].high for name in free if chosen.get(name, 0) > bounds[name].high}
    below = {name: bounds[name].low - chosen.get(name, 0) for name in free if chosen.get(name, 0) < bounds[name].low}
    if above and sum(above.values()) >= sum(below.values()):
        return {name: bounds[name].high for name in above}
    return {name: bounds[name].low for name in below}
