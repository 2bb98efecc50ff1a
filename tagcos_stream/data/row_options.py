"""How the rows of a source are read: options that hold for every shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tagcos_stream.data.turns import TurnOptions

Record = dict[str, Any]  # one row of a file: field name -> value


@dataclass(frozen=True)
class RowOptions:
    """How rows are read; the defaults recognise everything from content.

    shape: a name of SHAPE_NAMES, or None. columns: our field name -> the file's column; where a field of a shape is among them,
    only what is mapped is read. roles: the file's role word -> one of ROLES. train_roles: roles whose turns are trained on where
    the row does not say. drop_system: leave system turns out. check_order: reject rows whose turns do not alternate. max_chars:
    reject longer conversations (characters), None for any length. preference: "chosen" takes the chosen answer of preference
    pairs, None rejects them. scores: numeric columns that become signals of the examples (tagcos_stream/data/scores.py).
    """

    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    train_roles: tuple[str, ...] = ("assistant",)
    drop_system: bool = False
    check_order: bool = True
    max_chars: int | None = None
    preference: str | None = None
    scores: tuple[str, ...] = ()

    @property
    def turns(self) -> TurnOptions:
        """The options that concern the turns of a conversation."""
        return TurnOptions(self.columns, self.roles, self.train_roles)

    @property
    def written_turns(self) -> TurnOptions:
        """The same for turns that no file names the keys of, since a reader made them from text."""
        return TurnOptions({}, self.roles, self.train_roles)

    @property
    def context(self) -> TurnOptions:
        """For turns that stand before what is trained on."""
        return TurnOptions(self.columns, self.roles, ())
