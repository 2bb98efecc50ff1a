"""Flow parameters made from `Settings`: flat, with titles, descriptions, defaults and limits, for a server to check and show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import Field
from pydantic.fields import FieldInfo

from tagcos_stream.config import SELECT_FIELDS, Settings
from tagcos_stream.evaluation.config import Evaluation

ACRONYMS = {"Lora": "LoRA", "Rslora": "rsLoRA", "Gpus": "GPUs"}
REQUIRED = ("sources", "model")  # of a refresh: nothing can be done without them


def title(name: str) -> str:
    """warmup_examples -> Warmup examples."""
    first, *rest = name.split("_")
    return " ".join([ACRONYMS.get(first.capitalize(), first.capitalize()), *rest])


def _parameter(name: str, field: FieldInfo, *, default: Any, description: str | None = None) -> inspect.Parameter:
    """`default` Ellipsis: required. Limits (ge, gt, le) stay with the type, so that the server refuses what breaks them."""
    kind: Any = field.annotation
    limits = [*field.metadata, *([MinLen(1)] if default is ... else [])]
    if default is None:
        kind = kind | None
    annotation = Annotated[(kind, *limits)] if limits else kind
    shown = Field(default, description=description or field.description, json_schema_extra={"title": title(name)})
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)


def refresh_parameters() -> list[inspect.Parameter]:
    """Every setting."""
    return [
        _parameter(name, field, default=... if name in REQUIRED else field.default)
        for name, field in Settings.model_fields.items()
    ]


def select_parameters() -> list[inspect.Parameter]:
    """Root and run, then what may change; what is left out stays as that run had it."""
    root = Settings.model_fields["root"]
    run = FieldInfo(
        annotation=str, description="Complete run whose pool and settings are taken: its id, a name, or latest (main)."
    )
    return [_parameter("root", root, default=root.default), _parameter("run", run, default="latest")] + [
        _parameter(name, Settings.model_fields[name], default=None, description=_or_as_before(Settings.model_fields[name]))
        for name in SELECT_FIELDS
    ]


def evaluate_parameters() -> list[inspect.Parameter]:
    """Every setting of an evaluation."""
    return [_parameter(name, field, default=field.default) for name, field in Evaluation.model_fields.items()]


def _or_as_before(field: FieldInfo) -> str:
    plain = re.sub(r"; default [^;]*$", "", (field.description or "").removesuffix("."))
    return f"{plain}; empty: as in that run."


def takes(parameters: Iterable[inspect.Parameter]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function of keyword arguments this signature, for Prefect to read."""

    def signed(function: Callable[..., Any]) -> Callable[..., Any]:
        listed = list(parameters)
        function.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in listed}
        return function

    return signed
