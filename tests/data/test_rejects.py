"""When a run stops for its rejects, and the summary of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagcos_stream.data.rejects import check_rejects, summary
from tagcos_stream.types import UserError
from tests.data.tools import GOOD, read, write


@pytest.mark.parametrize(
    ("limit", "rows", "rejects", "done", "stops"),
    [
        (0.5, 10, 6, False, False),  # too early to judge
        (0.5, 10, 6, True, True),
        (0.5, 10, 5, True, False),
        (0.5, 1000, 501, False, True),
        (0.0, 1000, 1, False, True),
        (0.0, 0, 0, True, False),
        (3, 10, 3, False, False),
        (3, 10, 4, False, True),
    ],
)
def test_check_rejects__share_and_count(limit: float, rows: int, rejects: int, done: bool, stops: bool) -> None:
    if stops:
        with pytest.raises(UserError, match=r"f: .*rows rejected.*max_rejects"):
            check_rejects(limit, rows, rejects, done=done, where="f")
    else:
        check_rejects(limit, rows, rejects, done=done, where="f")


def test_summary__counts_reasons_over_blocks(tmp_path: Path) -> None:
    bad = [{"a": 1}, GOOD, b"{", {"a": 1}, {"prompt": "a", "completion": ""}, b"}"]
    got = read(write(tmp_path / "a.jsonl", bad * 5), block_rows=4)
    table = summary(b.rejects for b in got.blocks)
    assert table.select("reason", "rows", "first_row").rows() == [
        ("broken_json", 10, 2),
        ("unknown_shape", 10, 0),
        ("empty_answer", 5, 4),
    ]
    assert summary([]).height == 0
