"""Why a row cannot be used: the reasons of rejects, and the error that carries one."""

from __future__ import annotations

from collections.abc import Callable

REASONS = {
    "broken_json": "the row is not JSON",
    "bad_encoding": "the row is not UTF-8, or has half of a surrogate pair",
    "wrong_type": "a field that is read has another type than it must have",
    "unknown_shape": "no known shape has the row's fields",
    "missing_column": "a column that the source's settings name is not there",
    "unknown_role": "a turn's role is none that is known",
    "unread_field": "a field with text that the row's shape does not read: map the fields with `columns`",
    "several_texts": "a list of texts where one belongs",
    "preference": 'a preference pair: `preference = "chosen"` takes the chosen answer',
    "marked_bad": "a mark of the row, such as `label`, says that its answer is bad",
    "unsupported_content": "images, audio, or parts of a turn that are not text",
    "unsupported_weight": "a turn's loss weight is neither 0 nor 1",
    "no_assistant": "there is no assistant turn",
    "nothing_trained": "the row's train flags leave nothing to train on",
    "empty_answer": "an assistant turn has no text",
    "only_whitespace": "an assistant turn, or every other turn, is only white space",
    "role_order": "turns do not alternate, or a system turn comes later than first",
    "too_long": "more characters than max_chars",
    "too_many_turns": "more messages than the limit max_turns",
    "oversized_row": "more bytes than the limit max_row_bytes",
    "too_deep": "nested deeper than the parser's limit (rows) or MAX_TOOLS_DEPTH (tools)",
    "wrong_container": "the file is of another kind than its name says, or its text is not UTF-8 with line feeds",
    "corrupt_file": "the file ends early or cannot be decoded from here on; what came before was read",
    "blank_lines": "more blank lines, or empty elements of a list, in succession than the limit max_blank_lines",
    "zip_bomb": "the file unpacks to more than max_ratio, max_table_ratio, max_batch_bytes or max_unpacked_bytes, or to rows "
    "below min_row_bytes",
    "unread_list": "a second list in a JSON object: name it with `key` to read it",
    "empty_file": "the file holds nothing",
    "tree_broken": "a message whose parent is not in its tree, or a deleted one",
    "near_duplicate": "nearly the same text as an earlier example (asked for)",
    "contaminated": "shares a run of words with an evaluation row (asked for)",
}


class RowError(Exception):
    """A row that cannot be used: a reason of REASONS and what exactly was met.

    The detail may be a function that makes it, where that takes long: of most rejects nobody reads it.
    """

    def __init__(self, reason: str, detail: str | Callable[[], str]) -> None:
        super().__init__(reason, detail)
        self.reason, self._detail = reason, detail

    @property
    def detail(self) -> str:
        """What exactly was met."""
        return self._detail if isinstance(self._detail, str) else self._detail()
