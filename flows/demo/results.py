"""What `tagcos demo` shows at its end: the error of random draws, three selected examples with reasons, and what to do next."""

from __future__ import annotations

import shlex
import textwrap

import numpy as np
import polars as pl

from flows.report.build import write_report
from storage import report_samples
from storage.arrays import segments
from storage.catalog import runs, selections, spaces
from storage.root import Root
from tagcos_stream.selection.match import relative_error

DRAWS = 200  # random selections that are measured
SHOWN = 3  # selected examples that are printed
WIDTH = 110  # characters of a printed line


def print_results(root: Root, run_id: str, location: str, added: int) -> None:
    """Print what follows the summary of a run.

    Parameters
    ----------
    root, run_id
        A complete run.
    location
        The root as the user gave it.
    added : int
        Rows that were added to the first pool, for the next command.
    """
    print(f"random selections of as many examples, with equal weights: {random_error(root, run_id):.3f} (mean of {DRAWS})")
    samples = report_samples.collect(root, run_id, clustering_id=None, base=None)
    shown = first_chosen(samples.rows)
    print(f"\n{len(shown)} of the selected examples, the first of each of the largest clusters:")
    for row in shown.iter_rows(named=True):
        print(f"\n  {row['dataset']}, cluster {row['group_id']}, weight {row['weight']:.3g}; {row['reason']}")
        for message in samples.messages[row["example_id"]][:2]:
            line = f"{message.role}: {message.content}"
            print(textwrap.shorten(line, WIDTH, placeholder=" ...", initial_indent="    "))
    place, size = write_report(root, run_id)
    print(f"\nreport with every selected example and its reason ({size / 1e6:.1f} MB, open it in a browser):\n  {place}")
    again = shlex.join(["tagcos", "demo", "--root", location, "--add", str(added + 6)])
    print(f"\nadd rows and run again; only the new ones are computed:\n  {again}")


def first_chosen(rows: pl.DataFrame) -> pl.DataFrame:
    """The example chosen first in each of SHOWN clusters, those with most selected examples first."""
    chosen = rows.filter(pl.col("kind") == "chosen")
    counted = chosen.with_columns(n=pl.len().over("group_id")).filter(pl.col("place") == 0)
    return counted.sort("n", "group_id", descending=[True, False]).head(SHOWN)


def random_error(root: Root, run_id: str) -> float:
    """Mean relative error of the pool's mean feature over random selections as large as the run's.

    Returns
    -------
    float
        Comparable to the error with equal weights that a run records; the pool's features are held in memory.
    """
    space = runs.run_row(root.catalog, run_id)["space_id"]
    blocks = segments.open_features(root.files, space, spaces.features_pool(root.catalog, run_id, space))
    rows = np.concatenate([blocks.read(b) for b in range(len(blocks.starts) - 1)]).astype(np.float64)
    count = len(selections.shares(root.catalog, run_id))
    mean, generator = rows.mean(axis=0), np.random.default_rng(0)
    draws = (generator.choice(len(rows), count, replace=False) for _ in range(DRAWS))
    return float(np.mean([relative_error(rows[chosen].mean(axis=0), mean) for chosen in draws]))
