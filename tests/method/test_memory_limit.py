"""Work that does not fit in its memory is refused with both sizes and a remedy."""

from __future__ import annotations

import pytest

from tagcos_stream.memory import GIB, require_memory
from tagcos_stream.types import UserError


def test_require_memory__names_both_sizes() -> None:
    require_memory("nothing", 5, None)
    require_memory("enough", 5, 5)
    with pytest.raises(UserError, match=r"^regrouping needs 3\.5 GiB, limit 2\.0 GiB: raise memory_limit$"):
        require_memory("regrouping", 7 * GIB // 2, 2 * GIB)
    with pytest.raises(UserError, match=r"^regrouping needs 0\.02 GiB, limit 0\.01 GiB: select fewer$"):
        require_memory("regrouping", GIB // 50, GIB // 100, "select fewer")
