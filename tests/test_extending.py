"""docs/extending.md: its edits fit the code, and what they add works.

All edits of the page are applied to a copy of the code. What they add is then used there, in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
COPIED = ("flows", "storage", "tagcos_stream", "tests")
EDITS = re.findall(r"^( *)```diff\n(.*?)^\1```$", PAGE, re.MULTILINE | re.DOTALL)


def apply(folder: Path, diff: str) -> None:
    """The edits of one file: hunks of kept, removed and added text, whose old text stands in the file exactly once."""
    head, *lines = diff.splitlines()
    target = folder / head[4:]
    if head.startswith("+++"):
        assert not target.exists(), head
        assert all(line.startswith("+") for line in lines), head
        target.write_text("".join(line[1:] + "\n" for line in lines), encoding="utf-8")
        return
    text = target.read_text(encoding="utf-8")
    for hunk in "\n".join(lines).split("\n@@\n"):
        old = "\n".join(line[1:] for line in hunk.split("\n") if not line.startswith("+"))
        new = "\n".join(line[1:] for line in hunk.split("\n") if not line.startswith("-"))
        assert text.count(old) == 1, f"{head}: the code has {text.count(old)} times\n{old}"
        text = text.replace(old, new)
    target.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name)  # with what was compiled, which is valid for files that no edit changes
    for indent, diff in EDITS:
        apply(folder, textwrap.dedent(diff) if indent else diff)
    return folder


USES = {
    "a-selection-method": """
        import numpy as np
        from tagcos_stream.config import load_settings
        from tagcos_stream.selection.methods import METHODS, Group, Limits, described
        from tests.naive import choose_shortest

        assert load_settings({"method": "shortest"}).method == "shortest"
        group = Group({"target_tokens": np.array([5, 2, 9, 2]), "draw": np.array([0.1, 0.2, 0.3, 0.4])})
        chosen = METHODS["shortest"].choose(group, 3, {}, Limits()).indices.tolist()
        assert chosen == choose_shortest({name: column.tolist() for name, column in group.columns.items()}, 3) == [3, 1, 0]
        assert "shortest" in [row["method"] for row in described()]
    """,
    "a-gradient-variant": """
        import numpy as np, torch
        from tagcos_stream.config import load_settings
        from tagcos_stream.gradients.variants import Moments, transform
        from tests.naive import naive_variant

        assert load_settings({"gradient": "rms"}).gradient == "rms"
        r = np.random.default_rng(0)
        g, m, v = r.normal(size=(3, 40)), r.normal(size=40), r.random(40) + 0.1
        moments = Moments(torch.tensor(m), torch.tensor(v), 5)
        ours = transform("rms", torch.tensor(g), moments, torch.empty(3, 40, dtype=torch.float64)).numpy()
        np.testing.assert_allclose(ours, [naive_variant("rms", row, m, v, 5) for row in g], rtol=1e-12)
    """,
    "a-container": """
        import gzip, json
        from pathlib import Path
        from tests.data.tools import GOOD, read

        rows = b"".join(b"\\x1e" + json.dumps({**GOOD, "dataset": str(n)}).encode() + b"\\n" for n in range(5))
        Path("a.json-seq").write_bytes(rows)
        Path("b.json-seq.gz").write_bytes(gzip.compress(rows))
        for name in ("a.json-seq", "b.json-seq.gz"):
            assert read(name, block_rows=2).occurrences["dataset"].to_list() == list("01234")
            assert read(name, start_row=3).occurrences["row"].to_list() == [3, 4]
    """,
    "a-row-shape": """
        from pathlib import Path
        from tests.data.tools import read, write

        got = read(write(Path("cards.jsonl"), [{"front": "Who?", "back": "Ann"}, {"front": "Who?", "back": " "}]))
        assert got.texts == [[("user", "Who?"), ("assistant", "Ann")]]
        assert got.reasons == {1: "only_whitespace"}
    """,
    "an-export": """
        from collections import Counter
        from typing import get_args
        from flows.cli.store import FormatName
        from storage.exports.shapes import COMMON, Unfit
        from storage.exports.write import FORMATS

        assert list(get_args(FormatName)) == list(FORMATS)
        absent = dict.fromkeys(("name", "train", "reasoning", "tool_calls", "tool_call_id"))
        turns = [absent | {"role": role, "content": role} for role in ("user", "assistant")]
        example = {"messages": turns, "tools": None, "template_kwargs": None} | dict.fromkeys(COMMON, 1)
        made = FORMATS["question-answer"]
        (row,) = made.shape(example, Counter())
        assert (row["question"], row["answer"]) == ("user", "assistant") and set(row) == set(made.schema.names)
        thinking = [turns[0], turns[1] | {"reasoning": "Hm."}]
        for unfit in (turns * 2, thinking):
            try:
                made.shape(example | {"messages": unfit}, Counter())
            except Unfit:
                continue
            raise AssertionError("what the shape cannot hold is dropped")
    """,
    "a-setting": """
        from flows.cli.options import settings_table
        from tagcos_stream.config import load_settings
        from tagcos_stream.identity import space_recipe
        from tests.test_identity import OTHER

        assert "`feature_floor`" in settings_table() and "feature_floor" in OTHER
        spaces = {space_recipe(load_settings({"feature_floor": floor}), "adam-delta") for floor in (0.0, 0.1)}
        assert len(spaces) == 2
    """,
}


def test_extending__every_recipe_is_used() -> None:
    anchors = re.findall(r"^\| an? \[[^\]]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    assert anchors == list(USES)
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    assert set(anchors) <= headings


@pytest.mark.parametrize("recipe", USES)
def test_extending__what_a_recipe_adds_works(extended: Path, tmp_path: Path, recipe: str) -> None:
    code = f"import tagcos_stream; assert tagcos_stream.__file__.startswith({str(extended)!r})\n"
    environment = os.environ | {"PYTHONPATH": str(extended)}
    command = [sys.executable, "-c", code + textwrap.dedent(USES[recipe])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
