"""What a plain `pip install` gets: the package's own bounds exclude the versions that are known to break it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def requirements() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, extras included, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines) if r.name != project["name"]}


def constraints() -> dict[str, tuple[Requirement, str]]:
    """Every line of constraints.txt with its reason, by canonical name."""
    found: dict[str, tuple[Requirement, str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        text, _, reason = (part.strip() for part in line.partition("#"))
        if text:
            found[canonicalize_name(Requirement(text).name)] = (Requirement(text), reason)
    return found


def test_packaging__a_version_known_to_break_is_excluded_by_the_package_itself() -> None:
    """A range in constraints.txt is a limit with a reason; without the file, the package's metadata must hold it, too."""
    limits = {name: found for name, found in constraints().items() if "==" not in str(found[0].specifier)}
    assert {"fastapi", "sqlalchemy", "prefect"} <= set(limits)
    for name, (limit, reason) in limits.items():
        assert reason, f"{name}: a limit needs a reason"
        assert name in requirements(), f"{name}: not bounded in pyproject.toml"
        assert set(limit.specifier) <= set(requirements()[name].specifier), f"{name}: pyproject.toml admits more"


def test_packaging__tested_versions_are_admitted_by_the_package() -> None:
    required = requirements()
    for name, (constraint, _) in constraints().items():
        pinned = [spec.version for spec in constraint.specifier if spec.operator == "=="]
        if pinned and name in required:
            assert required[name].specifier.contains(Version(pinned[0])), f"{name} {pinned[0]}: pyproject.toml excludes it"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_packaging__a_wheel_works_without_constraints_from_another_folder(tmp_path: Path) -> None:
    """Build, install with the package's own metadata only, then ingest a file and run a flow, all outside of the checkout."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # the CPU build of torch exists under this version only; everything else is what the metadata resolves to
    subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", str(wheel)], check=True, cwd=tmp_path)
    rows = '{"instruction": "Name a colour.", "output": "Red."}\n{"instruction": "Add 2 and 2.", "output": "4"}\n'
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    code = (
        "import sys\n"
        "from prefect import flow\n"
        "from flows import prefect_flow, report\n"
        "from flows.report.page import FOLDER\n"
        "from storage.root import open_root\n"
        "from tagcos_stream.data.read import read_file\n"
        "from tagcos_stream.data.sources import resolve_sources\n"
        "assert (FOLDER / 'page.html').is_file()\n"
        "assert sum(b.occurrences.height for f in resolve_sources(['rows.jsonl']) for b in read_file(f)) == 2\n"
        "root = open_root('root')\n"
        "assert root.catalog.read('FROM selection_by_source').is_empty()\n"
        "assert flow(lambda: 3, name='three')() == 3\n"
    )
    subprocess.run([python, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    shown = subprocess.run([tmp_path / "venv" / "bin" / "tagcos", "doctor"], capture_output=True, text=True, cwd=tmp_path)
    assert "needs" not in shown.stdout, shown.stdout
