"""Rows other than plain instructions: preference pairs, answers marked as good or bad, rows with images or sound."""

from __future__ import annotations

from tagcos_stream.data.content import one_text
from tagcos_stream.data.pairs import BESIDE_PAIR, EXTRAS, SYSTEM_FIELDS, read_pair, untrained, with_system
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.turns import MEDIA_KEYS, read_turns
from tagcos_stream.types import Message

PREFERENCE_FIELDS = ("chosen", "rejected")
_PROMPTS = ("messages", "conversations", "conversation", "prompt", "instruction", "question", "query", "input")


def refuse_media(row: Record) -> None:
    """RowError for images, videos or audio that are not empty: the text alone is another example."""
    for name in MEDIA_KEYS:
        value = row.get(name)
        if value is not None and value != "" and value != [] and value != {}:
            raise RowError("unsupported_content", f"{name} is not empty, only text is read")


def refuse_marked(row: Record) -> None:
    """RowError for an answer that its `label` marks as bad (KTO); a cell of a CSV file has it as text."""
    label = row.get("label")
    if label is False or (isinstance(label, str) and label.lower() == "false"):
        raise RowError("marked_bad", "label is false: the answer is marked as bad")


def chosen_answer(row: Record, options: RowOptions) -> tuple[list[Message], set[str]] | None:
    """Messages of a preference pair with the chosen answer, and the fields read; None where the row is not a pair.

    Turns before the answer are context: no answer among them is trained on. RowError where the source does not ask for it.
    """
    present = [name for name in PREFERENCE_FIELDS if row.get(name)]
    if not present:
        return None
    if options.preference != "chosen" or not row.get("chosen"):
        raise RowError(
            "preference", f'{" and ".join(present)}: a preference pair; `preference = "chosen"` takes the chosen answer'
        )
    chosen = row["chosen"]
    chosen = [chosen] if isinstance(chosen, dict) else chosen
    prompt = next((name for name in _PROMPTS if row.get(name)), None)
    if isinstance(chosen, list) and chosen and isinstance(chosen[0], dict):
        answer = read_turns(chosen, options.turns, "chosen")
        if answer and answer[0]["role"] != "assistant":  # the whole conversation
            *before, last = answer
            return with_system(row, [*untrained(before), last]), {*PREFERENCE_FIELDS, *SYSTEM_FIELDS}
    else:
        answer = [{"role": "assistant", "content": one_text(chosen, "chosen")}]
    if prompt is None:
        raise RowError("unknown_shape", f"chosen has no prompt ({', '.join(_PROMPTS)})")
    if isinstance(row[prompt], list) and not all(isinstance(v, str) for v in row[prompt]):
        before = untrained(read_turns(row[prompt], options.context, prompt))
        return with_system(row, before) + answer, {prompt, *SYSTEM_FIELDS, *PREFERENCE_FIELDS}
    if len(answer) != 1:
        raise RowError("wrong_type", "chosen must be one answer")
    head = read_pair({**row, "chosen": answer[0]["content"]}, prompt, "chosen", options)
    return untrained(head[:-1]) + answer, {prompt, *EXTRAS, *BESIDE_PAIR, *PREFERENCE_FIELDS}
