"""Paths as users give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagcos_stream.config import load_settings
from tagcos_stream.identity import absolute_sources
from tagcos_stream.paths import expanded, is_hub_id
from tagcos_stream.types import UserError


def test_expanded__writes_out_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a"
    assert expanded("a/~") == Path("a/~")
    assert load_settings({"adapter": "~/a"}).adapter == str(tmp_path / "a")


def test_expanded__an_unknown_home_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"^~nouser/x: no home folder is known for ~nouser: .* ./~nouser/x$"):
        expanded("~nouser/x")
    with pytest.raises(UserError, match="~nouser/x"):
        absolute_sources(["~nouser/x"])


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("gpt2", True),
        ("./gpt2", False),
        ("../gpt2", False),
        ("/models/gpt2", False),
        ("~/gpt2", False),
        ("models/gpt2/last", False),
        ("owner/model.gguf", False),
        ("two words", False),
        (".", False),
        ("", False),
    ],
)
def test_is_hub_id__tells_ids_from_paths(ref: str, expected: bool) -> None:
    assert is_hub_id(ref) is expected
