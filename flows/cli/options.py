"""Command-line options made from `Settings`: one definition of every setting, with its unit and default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tagcos_stream.config import Settings
from tagcos_stream.declare import panel_of
from tagcos_stream.types import UserError

ROOT_VARIABLE = "TAGCOS_ROOT"
DEFAULT_ROOT = Settings.model_fields["root"].default

OWN = ("name", "wait")  # never those of an earlier run
DEFAULT = re.compile(r"[.;] [Dd]efault[: ].*$", re.DOTALL)  # how a description states its default
ALL = [name for name in Settings.model_fields if name != "sources"]  # sources are a command's arguments


def _option_type(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        element = get_args(annotation)[0]
        return list[element if isinstance(element, type) else str]  # type: ignore[misc]
    return annotation


def _help(field: FieldInfo, inherited: bool) -> str:
    """The description with the default; `inherited`: the value is that of an earlier run unless it is given."""
    text = field.description or ""
    if inherited:
        return f"{DEFAULT.sub('', text).removesuffix('.')}; default as in the run."
    if field.default in (None, (), "", False):
        return text
    default = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"{text.removesuffix('.')}; default {default}."


def settings_parameters(
    names: Collection[str] = ALL, of: type[BaseModel] = Settings, inherited: bool = False
) -> list[inspect.Parameter]:
    """One keyword parameter per setting named, all optional: None leaves file, preset and default in force."""
    parameters = []
    for name, field in of.model_fields.items():
        if name not in names:
            continue
        kind = _option_type(field.annotation)
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=_help(field, inherited and name not in OWN),
            rich_help_panel=panel_of(of, name),
            show_default=False,
            envvar=ROOT_VARIABLE if name == "root" else None,
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


def takes_settings(
    command: Callable[..., Any],
    names: Collection[str] = ALL,
    of: type[BaseModel] = Settings,
    inherited: bool = False,
) -> Callable[..., Any]:
    """Replace a command's `**settings` by one option per setting (of `names`); the command gets those that were given."""
    own = [
        p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    extra = settings_parameters(names, of, inherited)

    def wrapper(**given: Any) -> Any:
        settings = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in names and v is not None and v != []
        }
        return command(**{k: v for k, v in given.items() if k not in names}, **settings)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    wrapper.__signature__ = inspect.Signature([*keyword, *extra])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*keyword, *extra]}
    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    return wrapper


def run_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Complete runs and names of the root that the line names, for the shell."""
    from storage.catalog import runs
    from storage.root import open_root
    from storage.snapshot import snapshot_path

    try:
        copy = snapshot_path(open_root(context.params.get("root") or DEFAULT_ROOT, create=False))
    except (UserError, OSError):  # a message would disturb the line typed
        return []
    return runs.completions(copy, incomplete)


RootOption = Annotated[
    str, typer.Option("--root", help="Folder or object-store URL in which everything is stored.", envvar=ROOT_VARIABLE)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text and tables.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no messages, only the result.")]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="A complete run's id, its first characters, or a name; default latest, the newest named main.",
        autocompletion=run_ids,
    ),
]


def settings_table() -> str:
    """All settings as a Markdown table, for docs/settings.md."""
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, (), "") else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(settings_table())
