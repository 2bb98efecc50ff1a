"""Working ahead: same items, bounded, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tagcos_stream.ahead import ahead


def test_ahead__same_items_in_order() -> None:
    assert list(ahead(range(50), depth=3)) == list(range(50))
    assert list(ahead([])) == []


def test_ahead__makes_no_more_than_depth_before_they_are_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    iterator = ahead(items(), depth=2)
    for i in range(10):
        assert next(iterator) == i
        assert len(made) <= i + 1 + 2 + 2  # asked for, in the queue, and one in hand on either side
    iterator.close()
    assert not any(thread.name == "ahead" for thread in threading.enumerate())


def test_ahead__error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("broken")

    iterator = ahead(items())
    assert next(iterator) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(iterator)
    assert not any(thread.name == "ahead" for thread in threading.enumerate())


def test_ahead__refuses_no_depth() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        next(ahead([1], depth=0))
