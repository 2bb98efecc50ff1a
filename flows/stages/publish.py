"""Stage 6: the run becomes the latest, for readers of the catalog and of its published copy."""

from __future__ import annotations

from flows.context import RunContext
from flows.results import Published, Selection
from storage import snapshot
from storage.catalog import runs


def publish(run: RunContext, selection: Selection) -> Published:
    """Mark the run complete and publish a snapshot that readers open without a lock.

    Parameters
    ----------
    run, selection
        Context of the run, and what it selected.

    Returns
    -------
    Published
        Place of the snapshot.
    """
    assert selection.selected, "a budget is at least one example"
    runs.finish_run(run.catalog, run.run_id)
    place = snapshot.publish(run.root, run.run_id)
    return Published(place, {"snapshot": place})
