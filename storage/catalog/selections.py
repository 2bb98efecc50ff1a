"""Selections in the catalog: what runs chose, of which datasets, and from which rows of their sources."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from storage.database import Catalog
from storage.examples import example_reader
from storage.root import Root
from tagcos_stream.types import UserError


def chosen_by(catalog: Catalog, run_id: str) -> set[str]:
    """Return the selected examples of a run.

    Parameters
    ----------
    catalog
        Where the run is recorded.
    run_id
        Any run.

    Returns
    -------
    set of str
        Their ids.
    """
    return set(catalog.read("SELECT example_id FROM selections WHERE run_id = ?", [run_id])["example_id"])


def selection(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return the selection of a complete run.

    Parameters
    ----------
    catalog, run_id
        The run, which must be complete.

    Returns
    -------
    pl.DataFrame
        The columns of the macro selection_of, ordered by group and rank.

    Raises
    ------
    UserError
        The run is unknown or not complete.
    """
    status = catalog.read("SELECT status FROM runs WHERE run_id = ?", [run_id])["status"].to_list()
    if not status:
        raise UserError(f"there is no run {run_id}: `tagcos status` lists them")
    if status != ["complete"]:
        raise UserError(f"run {run_id} is {status[0]}, not complete: start the same `tagcos run` again to finish it")
    return catalog.read("FROM selection_of(?) ORDER BY group_id, rank", [run_id])


def shares(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return what a run has chosen, so far if it is not complete.

    Parameters
    ----------
    catalog, run_id
        The run.

    Returns
    -------
    pl.DataFrame
        segment, row and share: of the pool, for which the example stands. In no particular order.
    """
    return catalog.read("SELECT segment, row, share FROM selection_of(?)", [run_id])


def by_dataset(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return how a run's pool and its selection are divided among datasets.

    Parameters
    ----------
    catalog, run_id
        The run.

    Returns
    -------
    pl.DataFrame
        The columns of the macro by_dataset, ordered by dataset.
    """
    return catalog.read("FROM by_dataset(?) ORDER BY dataset", [run_id])


def first_occurrences(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return where a run's selected examples occur first in its sources.

    Parameters
    ----------
    catalog, run_id
        The run; its sources need not exist any more, since the catalog knows their rows.

    Returns
    -------
    pl.DataFrame
        example_id, source_file (path or URL), source_row (from 0): the first row of the first file, by name.
    """
    return catalog.read(
        """SELECT o.example_id, min_by(f.url, (f.url, o.row)) AS source_file, min_by(o.row, (f.url, o.row)) AS source_row
        FROM run_files r JOIN files f USING (file_id) JOIN occurrences o USING (file_id)
        WHERE r.run_id = $run AND o.example_id IN (SELECT s.example_id FROM selections s WHERE s.run_id = $run)
        GROUP BY o.example_id""",
        {"run": run_id},
    )


def selected_with_text(root: Root, run_id: str) -> Iterator[pl.DataFrame]:
    """Yield the selection of a complete run with its texts, one part of the example store at a time.

    Parameters
    ----------
    root
        The root of the run.
    run_id
        The run.

    Yields
    ------
    pl.DataFrame
        The columns of `selection`, messages, tools and template_kwargs, ordered by segment and row.
    """
    yield from example_reader(root).iterate(selection(root.catalog, run_id))
