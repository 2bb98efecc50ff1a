"""When a run stops because too many rows are rejected."""

from __future__ import annotations

import pytest

from tagcos_stream.data.rejects import check_rejects
from tagcos_stream.types import UserError


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
