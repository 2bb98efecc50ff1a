"""Rows other than plain instructions: preference pairs, answers marked as good or bad, rows with images or sound."""

from __future__ import annotations

from tagcos_stream.data.pairs import BESIDE_PAIR, SYSTEM_FIELDS, read_halves, turns_in, untrained, with_system
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.transcripts import begins_as_transcript, transcript_turns
from tagcos_stream.data.turns import MEDIA_KEYS, read_turns
from tagcos_stream.types import Message

PREFERENCE_FIELDS = ("chosen", "rejected")
_PLACES = ("path", "paths", "url", "urls", "file", "files", "filename", "filepath", "name", "bytes", "base64", "list")
MEDIA_FIELDS = (
    *MEDIA_KEYS,
    *(f"{kind}_{place}" for kind in ("image", "video", "audio") for place in _PLACES),
    *(f"image_{number}" for number in range(8)),
    "image_id", "decoded_image", "pixel_values", "img", "imgs", "img_path", "jpg", "png",
)  # fmt: skip
_MEDIA = frozenset(MEDIA_FIELDS)
MARK_FIELDS = ("label", "kto_tag", "is_correct")
_BAD = ("false", "0", "0.0")  # a cell of a table has a label as text
_PROMPTS = ("messages", "conversations", "conversation", "prompt", "instruction", "question", "query", "input")


def refuse_media(row: Record) -> None:
    """RowError for images, videos or audio that are not empty: the text alone is another example."""
    for name, value in row.items():  # a row has fewer fields than there are names
        if value and name in _MEDIA:
            raise RowError("unsupported_content", f"{name} is not empty, only text is read")


def refuse_marked(row: Record) -> None:
    """RowError for an answer that its `label` marks as bad (KTO), or LLaMA-Factory's name of it."""
    for name in MARK_FIELDS:
        mark = row.get(name)
        if isinstance(mark, str | int | float) and str(mark).lower() in _BAD:
            raise RowError(
                "marked_bad",
                f"{name} is {str(mark).lower()}: the answer is marked as bad; "
                "where it is a class, say what to read with `columns`",
            )


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
    chosen, keys = row["chosen"], options.turns
    turns = turns_in(chosen, "chosen", options)
    if isinstance(chosen, str) and begins_as_transcript(chosen):
        turns, keys = transcript_turns(chosen, "chosen"), options.written_turns
    if turns is not None:
        messages = read_turns(turns, keys, "chosen")
        if messages and messages[0]["role"] != "assistant":  # the whole conversation
            *before, last = messages
            return with_system(row, [*untrained(before), last]), {*PREFERENCE_FIELDS, *SYSTEM_FIELDS}
    prompt = next((name for name in _PROMPTS if row.get(name)), None)
    if prompt is None:
        raise RowError("unknown_shape", f"chosen has no prompt ({', '.join(_PROMPTS)})")
    before, answer = read_halves(row, prompt, "chosen", options)
    if len(answer) != 1 and turns_in(row[prompt], prompt, options) is None:
        raise RowError("wrong_type", "chosen must be one answer")
    return with_system(row, untrained(before)) + answer, {prompt, *BESIDE_PAIR, *PREFERENCE_FIELDS}
