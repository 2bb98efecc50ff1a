"""Near-duplicates and contamination, against the sets that they estimate or look up."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.data.canonical import REJECTS, occurrences_frame
from tagcos_stream.data.decontaminate import decontaminated, overlaps, read_eval
from tagcos_stream.data.near_duplicates import near_duplicates, peak_bytes
from tagcos_stream.data.read import read_file, resolve_sources
from tagcos_stream.data.shingles import find_words
from tagcos_stream.types import IngestBlock, Message, UserError
from tests import naive
from tests.data.tools import write


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab 1-漢かÀé“€ \n"), max_size=30), max_size=4))
def test_words__equal_naive(texts: list[str]) -> None:
    words = find_words(texts)
    for i, text in enumerate(texts):
        span = range(words.starts[i], words.starts[i + 1])
        assert [words.data[words.begin[w] : words.end[w]].decode() for w in span] == naive.words(text)


def _vocabulary() -> list[str]:
    return [f"w{i}" for i in range(500)]


def test_overlaps__equal_naive(tmp_path: Path) -> None:
    rng = random.Random(0)
    few = _vocabulary()[:3]  # so that short runs meet often
    rows = [" ".join(rng.choices(few, k=rng.randrange(0, 9))) for _ in range(20)]
    evaluation = [" ".join(rng.choices(few, k=rng.randrange(0, 9))) for _ in range(6)]
    write(tmp_path / "eval.jsonl", [{"q": {"deep": [text]}} for text in evaluation])
    index = read_eval([str(tmp_path / "eval.jsonl")], n=5)
    found = overlaps(rows, index)
    for i, row in enumerate(rows):
        sharing = [e for e, text in enumerate(evaluation) if naive.shares_run(row, text, 5)]
        assert (i in found) == bool(sharing)
        if sharing:
            place, _, words = found[i].partition(": ")
            assert int(place.rsplit(" ", 1)[1]) in sharing
            assert words in row
            assert len(words.split()) == 5


def test_decontaminated__moves_rows_to_rejects(tmp_path: Path) -> None:
    question = "Which river runs through the city where the treaty was signed in May of that year?"
    write(tmp_path / "eval.jsonl", [{"question": "short"}, {"question": question}])
    rows = [{"prompt": "What?", "completion": "That."}, {"prompt": question.upper().replace(" ", "\n"), "completion": "Seine"}]
    write(tmp_path / "pool.jsonl", rows * 2)
    index = read_eval([str(tmp_path / "eval.jsonl")])
    (file,) = resolve_sources([str(tmp_path / "pool.jsonl")])
    (block,) = read_file(file)
    after = decontaminated(block, index)
    assert after.occurrences["row"].to_list() == [0, 2]
    assert after.rejects["row"].to_list() == [1, 3]
    assert after.rejects["reason"].unique().to_list() == ["contaminated"]
    assert "eval.jsonl row 1: which\nriver" in after.rejects["detail"][0]
    write(tmp_path / "none.jsonl", [{"question": "too short"}])
    with pytest.raises(UserError, match="no text of 13 words"):
        read_eval([str(tmp_path / "none.jsonl")])


def test_read_eval__rows_that_would_not_be_protected_are_refused(tmp_path: Path) -> None:
    rows = [
        {"question": " ".join(f"w{i}x{j}" for j in range(20)), "pad": random.Random(i).randbytes(3_000).hex()} for i in range(99)
    ]
    lines = [json.dumps(row) for row in rows]
    cases = {
        "a.jsonl": ("\n".join([*lines[:5], lines[5][:-9], lines[6]]).encode(), "row 5 cannot be read .broken_json"),
        "b.jsonl.gz": (gzip.compress("\n".join(lines).encode())[:-60_000], "cannot be read .corrupt_file: gz"),
        "c.json": (f"[{lines[0]}}}, {lines[1]}]".encode(), "row 0 cannot be read .broken_json"),
        "d.csv": (b'question,answer\na,b\n"say \\"x\\"",b\nc,d\n', "row 1 cannot be read .corrupt_file: csv"),
        "e.csv": (b"question,answer\na,b\na,b,c\n", "row 1 cannot be read .wrong_type"),
    }
    for name, (data, said) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"decontamination: .*{name}: .*{said}"):
            read_eval([str(tmp_path / name)])
    lists = {"version": 1, "finnish": rows[:2], "note": ["x"], "telugu": rows[2:5]}
    (tmp_path / "f.json").write_text(json.dumps(lists))
    assert read_eval([str(tmp_path / "f.json")]).places == [(str(tmp_path / "f.json"), i) for i in range(5)]


@pytest.mark.process  # some seconds
def test_decontaminated__finds_the_known_overlap(shared_data: Path) -> None:
    index = read_eval([str(shared_data / "eval" / "mmlu"), str(shared_data / "eval" / "tydiqa")])
    (file,) = resolve_sources([str(shared_data / "mix" / "dolly.parquet")])
    found = [d for block in read_file(file) for d in decontaminated(block, index).rejects["detail"]]
    assert sum("tydiqa" in d for d in found) >= 5
    assert sum("mmlu" in d for d in found) >= 1


def _frame(texts: list[str], answer: str = "x y z") -> pl.DataFrame:
    messages = [[{"role": "user", "content": t}, {"role": "assistant", "content": answer}] for t in texts]
    n = len(texts)
    return occurrences_frame(list(range(n)), messages, [None] * n, [None] * n, ["d"] * n, [None] * n)  # type: ignore[arg-type]


def test_near_duplicates__agree_with_jaccard(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    rng = random.Random(1)
    texts = [" ".join(rng.choices(_vocabulary(), k=120)) for _ in range(60)]
    for i in range(1, 41):  # from nearly the same to hardly alike
        words = texts[i].split()
        for at in rng.sample(range(120), i):
            words[at] = "other"
        texts.append(" ".join(words))
    frame = _frame(texts)
    found = near_duplicates([frame[:50], frame[50:]], tmp_path, threshold=0.8)
    ids = {e: i for i, e in enumerate(frame["example_id"].to_list())}
    whole = [t + "\nx y z" for t in texts]
    for own, other, likeness in found.select("example_id", "like_id", "likeness").iter_rows():
        assert ids[other] < ids[own]
        assert abs(naive.jaccard(whole[ids[own]], whole[ids[other]], 3) - likeness) < 0.16  # four standard errors
    dropped = {ids[own] for own in found["example_id"]}
    for i in range(1, 41):
        true = naive.jaccard(whole[59 + i], whole[i], 3)
        assert true < 0.9 or 59 + i in dropped
        assert true > 0.65 or 59 + i not in dropped
    assert not dropped & set(range(60))
    assert not list(tmp_path.iterdir())
    assert near_duplicates([frame], tmp_path, seed=1).equals(near_duplicates([frame[:7], frame[7:]], tmp_path, seed=1))


def test_near_duplicates__chain_names_the_kept_row(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(words[i * 8 : i * 8 + 200]) for i in range(4)] + ["", "a", "a b", "a, b"]
    frame = _frame(texts, answer="?")
    found = near_duplicates([frame], tmp_path, threshold=0.8)
    ids = frame["example_id"].to_list()
    assert found["example_id"].to_list() == ids[1:4]
    assert found["kept_id"].to_list() == [ids[0]] * 3
    assert all(d.startswith("near_duplicate of ") for d in found["detail"])
    assert near_duplicates([], tmp_path).height == 0
    with pytest.raises(UserError, match="threshold is 2"):
        near_duplicates([], tmp_path, threshold=2)
    assert peak_bytes(10_000_000) < 1 << 30


def test_overlap__reasoning_and_calls_are_text(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    letters = "abcdefghijklmnopqrstuvwxyz"
    said = [" ".join(f"{c}{i}" for i in range(40)) for c in letters[:4]]
    calls = [f'[{{"type":"function","function":{{"name":"f","arguments":{{"x":"{text}"}}}}}}]' for text in said]
    turns: list[list[Message]] = [
        [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "", "tool_calls": calls[0]}],
        [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "", "tool_calls": calls[1]}],
        [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "Done.", "reasoning": said[2]}],
        [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "Done.", "reasoning": said[3]}],
    ]
    frame = occurrences_frame([0, 1, 2, 3], turns, [None] * 4, [None] * 4, ["d"] * 4, [None] * 4)
    assert near_duplicates([frame], tmp_path).is_empty()
    write(tmp_path / "eval.jsonl", [{"question": said[1]}, {"question": said[3]}])
    block = IngestBlock(frame, pl.DataFrame(schema=REJECTS), 4, 0, True)
    assert decontaminated(block, read_eval([str(tmp_path / "eval.jsonl")])).rejects["row"].to_list() == [1, 3]
