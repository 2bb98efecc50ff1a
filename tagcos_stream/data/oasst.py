"""OpenAssistant trees to threads: a tree nested in one record, or a message a row with its parent's id.

A thread is the path from the root to an assistant message that has no other assistant message below it, so each answer of a
tree is trained on with its context, and what an answer shares with its siblings' paths is repeated, as in the common
conversions of this data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.turns import ROLE_WORDS
from tagcos_stream.types import Message

MAX_TREE = 20_000  # messages; the largest released tree has under a thousand
MAX_THREADS = 200_000  # messages of all threads of a tree: what threads share is repeated
MAX_THREADS_TEXT = 64 << 20  # characters of all threads
FLAT_FIELDS = ("message_id", "parent_id", "role", "text")


@dataclass
class Node:
    """One message; parent is an index into the tree's list, -1 for the root."""

    parent: int
    role: str
    text: str
    deleted: bool
    row: int = 0


def tree_threads(record: dict[str, Any]) -> list[list[Message]]:
    """Threads of a record {message_tree_id, prompt: {text, role, replies: [...]}}. RowError where there is none."""
    nodes: list[Node] = []
    waiting: list[tuple[int, Any]] = [(-1, record.get("prompt"))]
    while waiting:
        parent, value = waiting.pop()
        if len(nodes) >= MAX_TREE:
            raise RowError("tree_broken", f"more than MAX_TREE {MAX_TREE:,} messages")
        nodes.append(node(value, parent))
        replies = value.get("replies") or []
        if not isinstance(replies, list):
            raise RowError("wrong_type", "replies must be a list")
        waiting += [(len(nodes) - 1, reply) for reply in reversed(replies)]
    ends = leaves(nodes)
    check_size(nodes, ends)
    found = [path(nodes, leaf) for leaf in ends]
    threads = [messages for messages in found if messages is not None]
    if not threads:
        raise RowError("no_assistant", f"no answer that is not deleted among the tree's {len(nodes)} messages")
    return threads


def node(value: Any, parent: int, row: int = 0) -> Node:
    """A Node of a message object. RowError where it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not isinstance(value.get("role"), str):
        raise RowError("wrong_type", "a message of a tree must be an object with text and role")
    role = ROLE_WORDS.get(value["role"])
    if role is None:
        raise RowError("unknown_role", f"role {value['role'][:60]!r}")
    deleted = value.get("deleted")
    is_deleted = deleted.strip().lower() in ("true", "1") if isinstance(deleted, str) else deleted == 1  # text in a CSV file
    return Node(parent, role, value["text"], is_deleted, row)


def check_size(nodes: list[Node], ends: list[int]) -> None:
    """RowError where the threads that end at `ends` have more messages or text than the limits."""
    messages, characters = [0] * len(nodes), [0] * len(nodes)
    for i, one in enumerate(nodes):
        messages[i] = 1 + (messages[one.parent] if one.parent >= 0 else 0)
        characters[i] = len(one.text) + (characters[one.parent] if one.parent >= 0 else 0)
    if (n := sum(messages[i] for i in ends)) > MAX_THREADS:
        raise RowError("tree_broken", f"its threads have {n:,} messages, limit MAX_THREADS {MAX_THREADS:,}")
    if (n := sum(characters[i] for i in ends)) > MAX_THREADS_TEXT:
        raise RowError("tree_broken", f"its threads have {n:,} characters, limit MAX_THREADS_TEXT {MAX_THREADS_TEXT:,}")


def leaves(nodes: list[Node]) -> list[int]:
    """Assistant messages with no assistant message below them; parents stand before their children."""
    answered = [False] * len(nodes)
    out = []
    for i in reversed(range(len(nodes))):
        if nodes[i].role == "assistant" and not answered[i]:
            out.append(i)
        if nodes[i].parent >= 0 and (answered[i] or nodes[i].role == "assistant"):
            answered[nodes[i].parent] = True
    return out[::-1]


def path(nodes: list[Node], leaf: int) -> list[Message] | None:
    """Messages from the root to the leaf, or None where one of them is deleted."""
    out: list[Message] = []
    i = leaf
    while i >= 0:
        if nodes[i].deleted:
            return None
        out.append({"role": nodes[i].role, "content": nodes[i].text})
        i = nodes[i].parent
    return out[::-1]


def is_flat(record: object) -> bool:
    """Whether a record is one message of a tree."""
    return isinstance(record, dict) and all(f in record for f in FLAT_FIELDS)


def flat_trees(rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, list[tuple[int, list[Message] | RowError]]]]:
    """Trees of a file with a message a row, whose rows stand side by side, each parent before its children.

    rows: (row, record). Yields, per tree, its last row + 1 and the (row, thread or why there is none) of its leaves; rows inside
    a thread have no entry of their own.
    """
    nodes: list[Node] = []
    places: dict[str, int] = {}
    broken: list[tuple[int, list[Message] | RowError]] = []
    tree: object = None
    end = 0
    for row, record in rows:
        parent = record["parent_id"]
        if parent == "" or parent != parent:  # an empty cell, or NaN
            parent = None
        own = record.get("message_tree_id") or (record["message_id"] if parent is None else tree)
        if (own != tree or len(nodes) + len(broken) >= MAX_TREE) and (nodes or broken):
            yield end, _threads(nodes, broken)
            nodes, places, broken = [], {}, []
        tree, end = own, row + 1
        try:
            if parent is not None and parent not in places:
                raise RowError("tree_broken", f"parent {str(parent)[:60]} is not before it; sort the file by message_tree_id")
            nodes.append(node(record, -1 if parent is None else places[parent], row))
            places[record["message_id"]] = len(nodes) - 1
        except (RowError, TypeError) as e:
            broken.append(
                (row, e if isinstance(e, RowError) else RowError("wrong_type", "message_id and parent_id must be text"))
            )
    if nodes or broken:
        yield end, _threads(nodes, broken)


def _threads(nodes: list[Node], broken: list[tuple[int, list[Message] | RowError]]) -> list[tuple[int, list[Message] | RowError]]:
    out = list(broken)
    used = [False] * len(nodes)
    ends = leaves(nodes)
    try:
        check_size(nodes, ends)
        too_large = None
    except RowError as e:
        too_large = e
    for leaf in ends:
        found = too_large or path(nodes, leaf) or RowError("tree_broken", "a message of its thread is deleted")
        out.append((nodes[leaf].row, found))
        i = leaf
        while i >= 0 and not used[i]:
            used[i] = True
            i = nodes[i].parent
    out += [
        (n.row, RowError("no_assistant", "no answer below this message"))
        for n, inside in zip(nodes, used, strict=True)
        if not inside
    ]
    return sorted(out, key=lambda item: item[0])
