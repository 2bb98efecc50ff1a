"""What is kept of rejected rows, and when a run stops because there are too many."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tagcos_stream.data.canonical import KEPT
from tagcos_stream.data.convert_rows import is_no_value, loads
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.rejects import Reject, Rejects, check_rejects
from tagcos_stream.types import UserError
from tests.data.tools import read, write_bytes


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


def test_rejects__beyond_a_number_of_a_reason_keep_their_row_alone() -> None:
    rejects = Rejects(*(Reject(row, "broken_json", f"d{row}", f"s{row}") for row in range(KEPT + 3)))
    assert rejects.full("broken_json")
    rejects.add(Reject(KEPT + 3, "wrong_type", "d", "s"))
    rejects.add_row("broken_json", KEPT + 4)
    later = Rejects(Reject(KEPT + 5, "broken_json", "d", "s"), Reject(KEPT + 6, "wrong_type", "d", "s"))
    rejects.update(later)
    found = rejects.frame().rows()
    assert [row for row, *_ in found] == list(range(KEPT + 7))
    assert found[KEPT - 1] == (KEPT - 1, "broken_json", f"d{KEPT - 1}", f"s{KEPT - 1}")
    assert {row for row, _, detail, _ in found if detail is None} == {KEPT, KEPT + 1, KEPT + 2, KEPT + 4, KEPT + 5}
    assert rejects.within(2, KEPT + 4).frame().rows() == found[2 : KEPT + 4]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_rejects__of_many_like_rows_are_all_there(tmp_path: Path, ending: str) -> None:
    """Broken in 3 ways and good by turns; what is beyond the number has the same reason as when it is read alone."""
    ways = [b"x%d", b'{"a":%d}', b"%d", b'{"prompt":"a%d","completion":"b"}', b"{%d}", b'{"prompt":%d,"completion":"b"}']
    n = 6 * (KEPT + 20)
    rows = [ways[i % 6] % i for i in range(n)]
    if ending == "csv":
        data = b"prompt,completion\n" + b"\n".join(b"a%d" % i if i % 2 else b"a%d,b" % i for i in range(n))
        reasons = {1: "wrong_type", 3: "wrong_type", 5: "wrong_type"}
    else:
        data = b"\n".join(rows) if ending == "jsonl" else b"[" + b",".join(rows) + b"]"
        reasons = {0: "broken_json", 1: "unknown_shape", 2: "wrong_type", 4: "broken_json", 5: "wrong_type"}
    got = read(write_bytes(tmp_path / f"a.{ending}", data))
    assert got.reasons == {i: reasons[i % 6] for i in range(n) if i % 6 in reasons}
    assert got.occurrences["row"].to_list() == [i for i in range(n) if i % 6 not in reasons]


def test_loads__gives_the_same_reason_briefly() -> None:
    parts = (
        "",
        "0",
        "-1",
        "1e400",
        "NaN",
        "-Infinity",
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\ud800",
        "a",
        ",",
        ":",
        "é",
        "\ufeff",
        "\t",
        "null",
    )

    def outcome(text: str, brief: bool) -> object:
        try:
            return repr(loads(text.encode(), brief=brief))
        except RowError as e:
            return e.reason

    for three in product(parts, repeat=3):
        text = "".join(three)
        assert outcome(text, True) == outcome(text, False), text
        assert not is_no_value(text.encode()) or outcome(text, False) == "broken_json", text
