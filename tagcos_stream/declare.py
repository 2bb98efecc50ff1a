"""How a settings model declares its fields: every field says what it decides, and lists of fields are derived from that.

What a field decides says which identities it enters (tagcos_stream/identity.py), whether a run can be selected again with
another value, and the panel of the help that lists it. A field without this declaration fails when its module is imported.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Decides = Literal[
    "pool",  # which examples there are to choose from
    "weights",  # the model and an adapter of the user's own: spaces name them by their content
    "warmup",  # the training that makes the adapter, where none is imported
    "feature",  # all else that a feature depends on
    "run",  # what one run does, and how it computes; nothing that runs share is named by it
    "clusters",  # the clustering of a given pool and space
    "choice",  # what is chosen from a group of rows, by a given budget
    "budget",  # how many are chosen
    "machine",  # speed and place of a run, never its results
    # of an evaluation
    "trials",  # which models are trained: how much of an evaluation is done
    "subject",  # what the trained model is, named by what it resolves to: content, number type, steps
    "training",  # how each model is trained
    "measured",  # what it is measured on, named by the content of the rows
]

# the panel of a field that declares none
PANELS: dict[str, str] = {
    "pool": "Pool",
    "weights": "Model",
    "warmup": "Warm-up",
    "feature": "Gradient features",
    "clusters": "Clusters",
    "choice": "Selection",
    "budget": "Selection",
    "machine": "Machine",
    "trials": "What is compared",
    "subject": "How it is trained",
    "training": "How it is trained",
    "measured": "What it is measured on",
}


def setting(decides: Decides | tuple[Decides, ...], default: Any, *, description: str, panel: str = "", **limits: Any) -> Any:
    """A field of a settings model, with what it decides.

    Parameters
    ----------
    decides
        What another value of the field changes; several where it enters several identities.
    default
        The field's default.
    description
        One sentence with the unit, for the help, the forms and the table of settings.
    panel
        Panel of the help; by default that of what the field decides.
    **limits
        Limits as pydantic's `Field` takes them: ge, gt, le, lt.
    """
    kinds = (decides,) if isinstance(decides, str) else decides
    extra: dict[str, Any] = {"decides": list(kinds), "panel": panel or PANELS[kinds[0]]}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def check_declared(model: type[BaseModel]) -> None:
    """Refuse a model with a field that does not declare what it decides.

    Raises
    ------
    TypeError
        Names the field.
    """
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or not extra.get("decides"):
            raise TypeError(
                f"setting {name} does not declare what it decides: write it as `{name}: ... = setting('feature', ...)`, or with "
                "another of tagcos_stream.declare.Decides"
            )


def decided_by(model: type[BaseModel], *kinds: Decides) -> tuple[str, ...]:
    """The fields that decide one of `kinds`, in the model's order."""
    return tuple(name for name in model.model_fields if set(kinds) & set(_declared(model, name)["decides"]))


def panel_of(model: type[BaseModel], name: str) -> str:
    """Return the panel of the help that lists a field."""
    return str(_declared(model, name)["panel"])


def _declared(model: type[BaseModel], name: str) -> dict[str, Any]:
    extra = model.model_fields[name].json_schema_extra
    assert isinstance(extra, dict), name
    return extra
