"""The command `tagcos evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.cli.options import JsonOption
from flows.cli.output import print_frame, print_json
from flows.cli.select import PlotOption

if TYPE_CHECKING:
    from storage.database import Catalog


def evaluate(
    as_json: JsonOption = False,
    plot: PlotOption = None,
    **settings: Any,
) -> None:
    """Train one model on each selection and measure it on held-out rows: which method teaches most. Resumable."""
    from flows.compare import evaluate, plots
    from flows.compare.tables import report
    from storage.root import open_root
    from tagcos_stream.evaluation.config import load_evaluation

    asked = load_evaluation(settings)
    draw = plots.drawer(plot)
    evaluation_id = evaluate.evaluate(asked)
    catalog = open_root(asked.root, create=False).catalog
    if as_json:
        print_json(report(catalog, evaluation_id, asked.against))
    else:
        print_results(catalog, evaluation_id, asked.against)
    draw(lambda path: plots.plot_evaluation(catalog, evaluation_id, path))


def print_results(catalog: Catalog, evaluation_id: str, against: str) -> None:
    """Two tables a regime: the mean of every measure over seeds, and the paired differences from one method with their tests."""
    import polars as pl

    from flows.compare.tables import compact, intervals, tested, title
    from storage.catalog import evaluations

    found = evaluations.described(catalog, evaluation_id)
    results = evaluations.results(catalog, evaluation_id).filter(pl.col("part").is_null())
    differences = tested(catalog, evaluation_id, against)
    print(
        f"\nevaluation {evaluation_id}: {found['model']} on the pool of {found['run_id']}, {found['heldout_examples']} held-out "
        "examples; mean over seeds ± its standard error; vs random: mean of the differences of equal seeds"
    )
    for (regime,), mine in results.group_by("regime", maintain_order=True):
        print(f"\n{title(str(regime), found['config'])}\n")
        print_frame(compact(mine))
        tests = differences if differences.is_empty() else differences.filter(pl.col("regime") == regime)
        if not tests.is_empty():
            measure, reference = tests.select("measure", "against").row(0)
            print(
                f"\n{measure} minus that of {reference}: 95% intervals (Student t) of paired differences, p corrected by Holm\n"
            )
            print_frame(intervals(tests))
    if against not in results["method"]:
        print(
            f"\nno differences with tests: no trial of {against} is in this evaluation. Add --method {against}, or name another "
            "method of the table by --against"
        )
