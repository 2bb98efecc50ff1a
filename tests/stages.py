"""The stages that a run records, in their order."""

from __future__ import annotations

STAGES = ("ingest", "warm-up", "gradients", "cluster", "select", "publish")
# selecting again from stored features: the pool and features of an earlier run, and everything after the gradients
RESELECT_STAGES = ("pool", "cluster", "select", "publish")
