"""The section of a report on the target set: how far the selection and the pool cover its parts."""

from __future__ import annotations

import polars as pl

from flows.report.columns import columns
from flows.report.elements import Section, Table, first_rows, isolated, named
from flows.report.examples import opening
from storage.catalog.report_facts import Facts
from storage.report_samples import Samples

UNLIKE = 0.1  # mean cosine with the nearest example of the pool below which a part is called unlike anything in it


def coverage(facts: Facts, samples: Samples) -> Section:
    """Lay out the coverage of a target set by part, with some target examples and the chosen ones nearest to them.

    Parameters
    ----------
    facts
        Of a run with a target set.
    samples
        Examples of the run with their text.

    Returns
    -------
    Section
        Names the parts that nothing in the pool resembles.
    """
    rows = [row | {"part": named(row["part"] or None)} for row in facts.target.to_dicts()]
    unlike = [row["part"] for row in rows if row["pool_cosine"] < UNLIKE]
    lead = (
        f"The selection stands for the target set {facts.target_name}. Of each part: how many chosen examples are nearest to one "
        "of its examples, and the mean over its examples of the largest cosine with a chosen example and with any of the pool."
    )
    if unlike:
        lead += f" Nothing in the pool is like {', '.join(isolated(part) for part in unlike)}: cosines below {UNLIKE:g}."
    shown, more = first_rows(rows, "tagcos sql \"FROM target_coverage_of('RUN')\"")
    of_parts = columns("part weight examples chosen chosen_cosine pool_cosine", weight="share of the target", examples="examples")
    pairs = [
        {
            "part": named(row["dataset"] or None),
            "wanted": opening(samples, row["example_id"]),
            "served": opening(samples, row["stands_near"][0]),
            "cosine": row["score"],
        }
        for row in samples.rows.filter(pl.col("kind") == "target").iter_rows(named=True)
    ]
    of_pairs = columns("part wanted served cosine", wanted="target example", served="chosen example nearest to it")
    tables = (
        Table("target", "Parts of the target", of_parts, shown, more),
        Table("target-examples", "Target examples and the chosen ones nearest to them", of_pairs, pairs),
    )
    return Section("target", "Target", lead, tables=tables)
