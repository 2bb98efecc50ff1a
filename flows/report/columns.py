"""Columns of the report's tables: what each is titled and how its values are written, wherever it is shown."""

from __future__ import annotations

from flows.report.elements import Column, Kind

# keys by the way their values are written; all others are text
_KINDS: dict[Kind, str] = {
    "count": "rows pool selected budget kept n seeds size examples target_tokens datasets datasets_ahead chosen",
    "share": "weight fraction share taken share_of_pool share_of_selection datasets_reached clusters_reached jaccard",
    "number": "residual mean_squared_distance error_plain error_weighted error_fitted sd_fitted value limit se vs_random "
    "vs_random_se median_vs_random total mean median p90 largest cosine chosen_cosine pool_cosine",
    "seconds": "seconds",
    "bytes": "bytes peak_bytes",
}
# titles that are not the key itself
_TITLES = {
    "bytes": "size", "copied_from": "unchanged since", "error_fitted": "fitted", "error_plain": "plain",
    "error_weighted": "weighted", "fraction": "share", "jaccard": "overlap of seeds", "kept": "kept by sticky",
    "makeup": "datasets", "n": "examples", "p90": "90% are below", "peak_bytes": "peak memory so far", "pool": "in the pool",
    "run_id": "run", "sd_fitted": "spread", "se": "standard error", "selected": "chosen", "share": "chosen of it",
    "size": "examples", "snippet": "begins with", "taken": "chosen of it", "target_tokens": "target tokens chosen",
    "total": "sum", "trained": "selected by", "url": "file", "vs_random": "against random",
    "vs_random_se": "its standard error", "who": "of",
}  # fmt: skip
_KIND_OF: dict[str, Kind] = {key: kind for kind, keys in _KINDS.items() for key in keys.split()}


def columns(keys: str, **titles: str) -> tuple[Column, ...]:
    """Return the columns of a table.

    Parameters
    ----------
    keys
        Keys of its rows, in order, separated by spaces.
    titles
        By key, where the table titles a column in its own way.

    Returns
    -------
    tuple of Column
        One for each key.
    """
    return tuple(
        Column(key, titles.get(key) or _TITLES.get(key) or key.replace("_", " "), _KIND_OF.get(key, "text"))
        for key in keys.split()
    )
