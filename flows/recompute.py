"""What a change of settings costs: gradients of examples that have features already, computed again in another space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flows.plan import Plan
from flows.reuse import find_model_spaces
from storage.catalog import planning
from storage.database import Catalog
from tagcos_stream.config import Settings
from tagcos_stream.types import UserError

ASK_ABOVE = 600.0  # seconds of gradients
Confirm = Callable[["Recompute"], bool]


@dataclass(frozen=True)
class Recompute:
    """Examples whose features the root has in another space, and what computing them again takes."""

    examples: int
    run_id: str  # the run that computed them before
    reason: str  # which settings differ
    seconds: float | None  # at the speed of that run; None where it is not known

    @property
    def summary(self) -> str:
        """One sentence."""
        cost = "" if self.seconds is None else f", about {duration(self.seconds)} at the speed of {self.run_id}"
        return f"settings changed ({self.reason}): the gradients of {self.examples:,} examples are computed again{cost}"

    def check(self, max_hours: float, confirm: Confirm | None) -> None:
        """Stop a run whose user does not want this.

        Parameters
        ----------
        max_hours
            The setting `max_recompute`: the limit where nobody can be asked.
        confirm
            Asked instead, above ASK_ABOVE.

        Raises
        ------
        UserError
            The answer was no, or the limit is exceeded.
        """
        seconds = self.seconds or 0.0
        if confirm is not None:
            allowed, why = seconds < ASK_ABOVE or confirm(self), ""
        else:
            allowed, why = max_hours > 0 and seconds <= 3600 * max_hours, f", max_recompute is {max_hours:g} h"
        if not allowed:
            raise UserError(
                f"stopped before the gradients, as {self.summary}{why}; give the earlier settings, or accept it in one run with "
                "--yes (in a flow, a larger max_recompute). `tagcos run --dry-run` shows the plan"
            )


def recomputed(plan: Plan, settings: Settings, catalog: Catalog, run_id: str) -> Recompute | None:
    """Find what a planned run computes again only because its settings define another feature space.

    Parameters
    ----------
    plan
        Made once the pool is known.
    settings
        Those of the run.
    catalog
        Of its root.
    run_id
        The run.

    Returns
    -------
    Recompute or None
        None if nothing is computed by a model, or the root has no features of another space for the pool.
    """
    warm_up, gradients = plan.step("warm-up"), plan.step("gradients")
    if not gradients.compute or gradients.reuse is not None or not settings.model_variants:
        return None
    found = planning.features_elsewhere(catalog, run_id)
    if found is None:
        return None
    if warm_up.compute:
        reason = warm_up.reason
    else:
        reason = f"gradient is {settings.gradient}, the root has features of {', '.join(find_model_spaces(catalog, settings))}"
    return Recompute(found["examples"], found["run_id"], reason, found["seconds"])


def duration(seconds: float) -> str:
    """In the unit that suits: 12 s, 3.4 min, 5.6 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
