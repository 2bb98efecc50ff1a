"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# before Hugging Face or Prefect are imported: no test may reach a host that it did not start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real instruction data that is not part of the project: TAGCOS_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("TAGCOS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TAGCOS_DATA to its folder")
    return folder
