"""What every test may use."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

# before Hugging Face or Prefect are imported: no test may reach a host that it did not start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# before torch is imported: threads of several test processes on the same cores must not spin while they wait for each other;
# this halves the CPU time of a run of the tiny model, and processes that tests start inherit it
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# else each of the processes that tests start compiles this package anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# the tests' folders lie in memory where there is room: on a slow disk a quarter of the time is fsync
with suppress(OSError):
    if shutil.disk_usage("/dev/shm").free >= 6 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


TESTS = Path(__file__).parent
QUICK = ("data", "method", "storage")  # folders whose tests are quick, unless they need a process or a server
SERVERS = {"bucket", "s3_server"}  # fixtures that start one
# at the priority of the tests, which are soon to need the kernels
COMPILE = "from tagcos_stream import compile_ahead; compile_ahead.NICE = 0; compile_ahead.main()"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick`, import no tests of other folders: Prefect and the trainers take longer to import than these run."""
    quick = config.option.markexpr == "quick" and collection_path.parent == TESTS
    return True if quick and collection_path.name not in (*QUICK, "conftest.py") else None


def pytest_configure(config: pytest.Config) -> None:
    """Distribute files in their order: sorted by number of tests, long files of few tests would come last, to one process."""
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput"):
        compile_kernels(config)


def compile_kernels(config: pytest.Config) -> None:
    """Fill an empty cache while the first tests run; otherwise every worker, and a process of each of its runs, would."""
    from tagcos_stream.compile_ahead import marker

    if not marker().exists():
        process = subprocess.Popen([sys.executable, "-c", COMPILE], cwd=TESTS.parent, stdin=subprocess.DEVNULL)
        config.add_cleanup(lambda: _end(process))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def pytest_collection_finish() -> None:
    """Leave what the imports made out of later garbage collections: Trainer ends with one, which then takes no 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Extensions check at exit that nothing of theirs is left."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as quick the tests of the method, of ingest and of the store that start neither a process nor a server."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        started = SERVERS & set(getattr(item, "fixturenames", ()))
        if folder in QUICK and not started and not any(item.get_closest_marker(name) for name in ("process", "slow")):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real instruction data that is not part of the project: TAGCOS_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("TAGCOS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TAGCOS_DATA to its folder")
    return folder
