"""What of a turn is trained on: flags under the names that trainers use, character ranges, and the role's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagcos_stream.data.reasons import RowError
from tagcos_stream.types import Message, TrainRange

# axolotl's and Home-LLM's: true also adds a turn that its role's default leaves out
ADDING = ("train", "training", "train_on", "train_on_turn")
# 0 leaves a turn out, 1 keeps its role's default; output_with_loss is XTuner's
KEEPING = ("loss", "loss_mask", "loss_scale", "loss_weight", "trainable", "weight", "is_train", "output_with_loss")
INVERTED = "masked"  # torchtune's: true leaves a turn out
UNCLEAR = ("mask", "train_mask", "ignore_loss", "do_train")  # some mean by true what others mean by false
FLAGS = (*ADDING, *KEEPING, INVERTED, *UNCLEAR)
DETAIL = "train_detail"


def read_train(
    turn: Mapping[str, Any],
    message: Message,
    spans: Sequence[tuple[int, int, Any]],
    keys: Mapping[str, str],
    train_roles: Sequence[str],
    what: str,
) -> list[TrainRange] | None:
    """The turn's trained ranges, None for its role's default (Message.train).

    A flag of the turn goes before train_roles, as in axolotl; offsets of its `train_detail` are inclusive at both ends and may
    reach past the end, and what no detail names is not trained on. Flags of content parts (`spans`) go before the turn's. A list
    of {begin, end} is our own form.
    """
    length = len(message["content"])
    own = turn.get(keys.get("train", "train"))
    if isinstance(own, list):
        return merged([_range(r, "begin", "end", False, length) for r in own])
    detail = turn.get(keys.get("train_detail", DETAIL))
    if detail is not None and not isinstance(detail, list):
        raise RowError("wrong_type", f"{what}: {DETAIL} must be a list")
    flag = _flag(turn, keys, what)
    default = message["role"] in train_roles
    if flag is not None:
        adds, value = flag
        trained = value if adds else value and default
    else:
        trained = bool(detail) if detail is not None else default
    if trained and detail:
        ranges = [
            _range(d, "begin_offset", "end_offset", True, length) for d in detail if not isinstance(d, dict) or d.get("train")
        ]
        return merged(ranges)
    if any(part is not None for _, _, part in spans):
        flags = [(begin, end, trained if part is None else _zero_or_one(part, what, "train")) for begin, end, part in spans]
        if len({bool(value) for _, _, value in flags}) > 1:
            return merged([{"begin": begin, "end": end} for begin, end, value in flags if value])
        trained = bool(flags[0][2])
    if trained == (message["role"] == "assistant"):
        return None
    return [{"begin": 0, "end": length}] if trained else []


def _flag(turn: Mapping[str, Any], keys: Mapping[str, str], what: str) -> tuple[bool, bool] | None:
    """(does it add to the role's default, its value) of the turn's flag, None without one. RowError where flags disagree."""
    names = (keys["train"],) if "train" in keys else (*ADDING, *KEEPING, INVERTED)
    found = {}
    if "train" not in keys and (unclear := [name for name in UNCLEAR if turn.get(name) is not None]):
        raise RowError(
            "unread_field",
            f"{what} has {', '.join(unclear)}, of which trainers take opposite meanings: where true means trained, map it in "
            f"`columns` as train; where true leaves the turn out, name it {INVERTED}",
        )
    for name in names:
        if (value := turn.get(name)) is not None:
            found[name] = _zero_or_one(value, what, name) != (name == INVERTED and "train" not in keys)
    if len(set(found.values())) > 1:
        raise RowError("wrong_type", f"{what} has train flags that disagree: {', '.join(found)}")
    if not found:
        return None
    return "train" in keys or any(name in ADDING for name in found), next(iter(found.values()))


def _zero_or_one(value: Any, what: str, name: str) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, int | float):
        raise RowError(
            "unsupported_weight", f"{what} has {name} {value}: only 0 and 1 can be trained on, not a share of the loss"
        )
    raise RowError("wrong_type", f"{what}: {name} must be true, false or a list of ranges, got {str(value)[:60]!r}")


def _range(value: Any, begin: str, end: str, inclusive: bool, length: int) -> TrainRange:
    if not (isinstance(value, dict) and type(value.get(begin)) is int and type(value.get(end)) is int):
        raise RowError("wrong_type", f"a train range must be an object with integers {begin} and {end}")
    a, b = value[begin], min(value[end] + 1, length) if inclusive else value[end]
    if not 0 <= a <= b <= length:
        raise RowError("wrong_type", f"train range [{a}, {b}) does not fit a turn of {length} characters")
    return {"begin": a, "end": b}


def merged(ranges: list[TrainRange]) -> list[TrainRange]:
    """In order, without empty ones, those that touch joined: one spelling, so one id."""
    out: list[TrainRange] = []
    for r in sorted((r for r in ranges if r["begin"] < r["end"]), key=lambda r: (r["begin"], r["end"])):
        if out and r["begin"] <= out[-1]["end"]:
            out[-1] = {"begin": out[-1]["begin"], "end": max(out[-1]["end"], r["end"])}
        else:
            out.append(r)
    return out
