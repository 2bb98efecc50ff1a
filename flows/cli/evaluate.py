"""The command `tagcos evaluate`."""

from __future__ import annotations

from typing import Any

from flows.cli.options import JsonOption
from flows.cli.output import print_json
from flows.cli.select import PlotOption


def evaluate(
    as_json: JsonOption = False,
    plot: PlotOption = None,
    **settings: Any,
) -> None:
    """Train one model on each selection and measure it on held-out rows: which method teaches most. Resumable."""
    from flows.compare import evaluate, plots
    from flows.compare.tables import print_results, report
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
