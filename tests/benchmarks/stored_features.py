"""The stored features of a root, for measurements on them."""

from __future__ import annotations

import polars as pl

from storage.catalog import spaces
from storage.root import Root, open_root


def stored_features(path: str, variant: str) -> tuple[Root, str, pl.DataFrame]:
    """Return a root (its catalog migrated), its newest space of a variant, and the pool of its newest run with features there."""
    root = open_root(path, create=False)
    root.catalog.upgrade()
    space = root.catalog.read(
        "SELECT space_id FROM feature_spaces WHERE variant = ? ORDER BY added_at DESC LIMIT 1", [variant]
    ).item()
    run_id = root.catalog.read(
        "SELECT run_id FROM runs WHERE status = 'complete' AND reselects IS NULL ORDER BY started_at DESC LIMIT 1"
    ).item()
    return root, space, spaces.features_pool(root.catalog, run_id, space)
