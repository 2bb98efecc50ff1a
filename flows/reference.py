"""The selection that a method compares with, such as the one whose lengths `length-matched` follows."""

from __future__ import annotations

import numpy as np
import polars as pl

from storage.catalog import runs, selections
from storage.database import Catalog
from tagcos_stream.config import Settings
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError


def need_reference(settings: Settings, reselects: str | None) -> None:
    """Refuse a method that compares with a selection where none is named.

    Raises
    ------
    UserError
        Names the remedy.
    """
    if "reference" in METHODS[settings.method].columns and settings.match_lengths is None and reselects is None:
        raise UserError(
            f"method {settings.method} follows the lengths of another selection, but no run is named: set match_lengths to a "
            "complete run, or use `tagcos select`, which takes the run that it selects from again"
        )


def reference_rows(catalog: Catalog, settings: Settings, pool: pl.DataFrame, reselects: str | None) -> np.ndarray | None:
    """Find the examples of the selection that a method compares with.

    Parameters
    ----------
    catalog
        Where runs are recorded.
    settings
        Of the run; `match_lengths` names the other one.
    pool
        N examples with example_id.
    reselects
        The run that is selected from again, which counts where none is named.

    Returns
    -------
    (N,) bool; None for a method that compares with none.

    Raises
    ------
    UserError
        The run is unknown or not complete, or none is named.
    """
    if "reference" not in METHODS[settings.method].columns:
        return None
    need_reference(settings, reselects)
    name = runs.complete_run(catalog, settings.match_lengths or reselects)["run_id"]
    return pool["example_id"].is_in(list(selections.chosen_by(catalog, name))).to_numpy()
