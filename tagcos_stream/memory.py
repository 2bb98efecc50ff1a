"""The refusal of work that does not fit in the memory it may use."""

from __future__ import annotations

from tagcos_stream.types import UserError

GIB = 1 << 30


def require_memory(what: str, needed: int, limit: int | None, remedy: str = "raise memory_limit") -> None:
    """Refuse work that needs more memory than it may use.

    Parameters
    ----------
    what
        The work with its sizes, as the subject of a sentence: "herding among 100 rows of 64 dimensions".
    needed
        Bytes that it takes at most, by its formula.
    limit
        Bytes that it may take; None for no limit.
    remedy
        What the user can do.

    Raises
    ------
    UserError
        `needed` is above `limit`; names both.
    """
    if limit is not None and needed > limit:
        digits = 1 if needed >= GIB / 10 else 2
        raise UserError(f"{what} needs {needed / GIB:.{digits}f} GiB, limit {limit / GIB:.{digits}f} GiB: {remedy}")
