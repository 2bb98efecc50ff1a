"""docs/cookbook.md: every query answers what the page says, everywhere that it may be asked.

`python -m tests.flows.test_cookbook` writes the answers into the page, to be read before they are committed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import pytest

from flows.cli.output import print_frame
from storage.root import open_root
from tests.flows import cookbook_pool

PAGE = Path(__file__).parents[2] / "docs" / "cookbook.md"
QUERY = re.compile(r"```sql\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("cookbook")
    return folder, cookbook_pool.make(folder)


def named(text: str, names: dict[str, str]) -> str:
    return re.sub("|".join(names), lambda found: names[found[0]], text)


def answer(query: str, folder: Path, names: dict[str, str]) -> str:
    """What `tagcos sql` prints, with the page's names for runs, and without seconds, which differ every time."""
    query = named(query, names).replace("my-pool/", f"{folder}/my-pool/")
    root = open_root(str(folder / "my-pool"), create=False)
    frame = root.catalog.ask(query, examples=root.files.place("examples/*/*.parquet"))
    frame = frame.with_columns(pl.lit("varies").alias(name) for name in frame.columns if "seconds" in name)
    texts = [name for name in frame.columns if frame[name].dtype == pl.String]
    frame = frame.with_columns(pl.col(texts).replace({run: name for name, run in names.items()})) if texts else frame
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_frame(frame, exact=True)
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"


def test_cookbook__every_query_answers_what_the_page_says(made: tuple[Path, dict[str, str]]) -> None:
    found = QUERY.findall(PAGE.read_text(encoding="utf-8"))
    assert len(found) >= 15
    for query, told in found:
        assert told, f"no answer on the page: {query}"
        assert answer(query, *made) == told, query
        assert len(told.splitlines()) > 1, query


def blocks(language: str, containing: str) -> str:
    (found,) = (
        b for b in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if containing in b
    )
    return found


@pytest.mark.parametrize("containing", ["tagcos sql", "duckdb -readonly", "duckdb -init"])
def test_cookbook__shells(made: tuple[Path, dict[str, str]], containing: str) -> None:
    """As they stand, from the folder that the root lies in. The DuckDB shell is 1.5, the catalog was written by 2.0."""
    folder, names = made
    binaries = Path(sys.executable).parent
    if containing.startswith("duckdb") and not (binaries / "duckdb").exists():
        pytest.skip("needs duckdb-cli")
    for line in named(blocks("sh", containing), names).strip().splitlines():
        path = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
        done = subprocess.run(line, shell=True, cwd=folder, env=os.environ | path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (line, done.stderr)
        assert re.search(r"\b13\b", done.stdout) or '"residual"' in done.stdout, (line, done.stdout)


def test_cookbook__python(
    made: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made[0])
    exec(blocks("python", "catalog-snapshot"), {})
    assert capsys.readouterr().out == "13 13\n"


def test_cookbook__object_storage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "driver"))
    cookbook_pool.make(tmp_path / "made", root=bucket, first_only=True)
    code = blocks("python", "s3://bucket").replace("s3://bucket/my-pool", bucket)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == "[(10,)]\n"


def _fill() -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = cookbook_pool.make(Path(folder) / "made")
        page = PAGE.read_text(encoding="utf-8")

        def filled(found: re.Match[str]) -> str:
            return f"```sql\n{found[1]}```\n\n```text\n{answer(found[1], Path(folder) / 'made', names)}```"

        PAGE.write_text(QUERY.sub(filled, page), encoding="utf-8")


if __name__ == "__main__":
    _fill()
