"""What a target set adds to what a run computes, without writing: its examples that are known, and those that are new."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from storage.catalog import planning, targets
from storage.database import Catalog
from tagcos_stream.config import Settings
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import resolve_sources, set_name

NONE = pl.DataFrame(schema={"example_id": pl.String, "segment": pl.String, "row": pl.Int64})


@dataclass(frozen=True)
class TargetSurvey:
    """The examples of a target.

    Parameters
    ----------
    known
        example_id, segment, row of those in the catalog.
    new
        Ids of those that are not.
    """

    known: pl.DataFrame = field(default_factory=lambda: NONE)
    new: frozenset[str] = frozenset()

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return [*self.known["example_id"], *sorted(self.new)]


def survey_target(settings: Settings, catalog: Catalog | None) -> TargetSurvey:
    """Read the files of a target, or find the target set that is named.

    Parameters
    ----------
    settings
        With or without a target.
    catalog
        Of the root; None where there is none yet.

    Returns
    -------
    TargetSurvey
        Empty without a target.

    Raises
    ------
    UserError
        No such file or set, or one that cannot be read.
    """
    if not settings.target:
        return TargetSurvey()
    name = set_name(settings.target)
    if catalog is not None and name is not None and (found := targets.find(catalog, name)) is not None:
        examples = targets.examples(catalog, found.target_id).select("example_id", "segment", "row")
        return TargetSurvey(examples.unique("example_id").sort("segment", "row"))
    ids: set[str] = set()
    for file in resolve_sources(settings.target):
        for block in read_file(file):
            ids.update(block.occurrences["example_id"])
    if catalog is None:
        return TargetSurvey(new=frozenset(ids))
    known = planning.examples(catalog).filter(pl.col("example_id").is_in(list(ids))).select("example_id", "segment", "row")
    return TargetSurvey(known, frozenset(ids - set(known["example_id"])))
