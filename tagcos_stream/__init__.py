"""The method: arrays and batches in, arrays out. Imports neither flows nor storage.

What is meant for use from Python (docs/library.md) can be had from here; each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "read_pool": "library",
    "encode_pool": "library",
    "warm_up": "library",
    "gradient_features": "library",
    "cluster_rows": "library",
    "select_rows": "library",
    "load_model": "gradients.model",
    "encode": "gradients.chat",
    "omp_select": "selection.pursuit.omp",
    "allocate": "selection.budget",
    "weighted_sft_trainer": "weighted_sft",
    "UserError": "types",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(_HOME)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
