"""What a conversation has besides text: calls of tools, the tools offered, and arguments for the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tagcos_stream.data.canonical import canonical_json
from tagcos_stream.data.content import is_empty
from tagcos_stream.data.reasons import RowError

CALL_KEYS = ("tool_calls", "function_call", "tool_call", "toolCalls", "functionCall", "function_calls")  # of a turn
ARGUMENT_KEYS = ("arguments", "args", "parameters", "input")  # of a call: OpenAI's, LangChain's, Llama 3.1's, Anthropic's
REPLY_KEYS = ("result", "results", "output", "response", "observation")  # of a call: what the tool said
# keys that say something of the call or of its function: no argument stands under them
_NO_ARGUMENTS = (
    "name", "id", "call_id", "type", "index", "function", "status", "description", "strict", "caller", "cache_control", "object",
    "created", "created_at", "timestamp",
)  # fmt: skip


def read_calls(turn: Mapping[str, Any], what: str) -> str | None:
    """Return the tool calls of a turn in the form of Message.tool_calls; None if it has none.

    Reads OpenAI's `tool_calls` (or its JSON text), the older `function_call`, and other spellings of both (CALL_KEYS).
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in CALL_KEYS:
        calls = turn.get(name) and _parsed(turn[name], f"{what}: {name}")
        if calls:
            found[name] = [_call(call, what) for call in (calls if isinstance(calls, list) else [calls])]
    if not found:
        return None
    texts = {name: compact(calls, f"{what}: tool_calls") for name, calls in found.items()}
    fullest = max(found, key=lambda name: sum("id" in call for call in found[name]))
    if not all(_agree(calls, found[fullest]) for calls in found.values()):
        raise RowError("unread_field", f"{what} has different calls under {' and '.join(found)}")
    return texts[fullest]


def _agree(calls: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Whether the calls are the other ones; they need not have their ids."""
    return len(calls) == len(others) and all(other | call == other for call, other in zip(calls, others, strict=True))


def spelled_calls(calls: list[Any], what: str) -> str | None:
    """Calls, each {name, arguments} alone or under `function`, as Message.tool_calls."""
    return compact([_call(call, what) for call in calls], f"{what}: tool_calls") if calls else None


def read_call_text(text: str, what: str) -> str | None:
    """The calls that are a turn's whole text: an object {name, arguments}, or a list of them (LLaMA-Factory's function_call)."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise RowError("wrong_type", f"{what} is a function call whose text is not a JSON object of name and arguments") from None
    return spelled_calls(value if isinstance(value, list) else [value], what)


def _call(call: Any, what: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = _parsed(call, f"{what}: tool_calls")
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("wrong_type", f"{what}: a tool call must have a function with a name")
    arguments = _arguments(call | {key: value for key, value in function.items() if not is_empty(value)}, what)
    out: dict[str, Any] = {} if call.get("id") is None else {"id": str(call["id"])}
    return out | {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def _arguments(call: Mapping[str, Any], what: str) -> Any:
    """The arguments of a call, under the one of ARGUMENT_KEYS that has any. RowError for other keys that may be arguments."""
    if replies := [key for key in REPLY_KEYS if not is_empty(call.get(key))]:
        raise RowError("unread_field", f"{what}: a tool call has {', '.join(replies)}, which belongs in a turn of the tool")
    given = [key for key in ARGUMENT_KEYS if call.get(key) is not None]
    spelled = {key: _spelled_arguments(call[key], what) for key in given if not is_empty(call[key])}
    found = {key: value for key, value in spelled.items() if value}
    for value in found.values() if len(found) > 1 else ():
        compact(value, what)  # refuses what is too deep to compare
    if any(value != next(iter(found.values())) for value in found.values()):
        raise RowError("wrong_type", f"{what}: a tool call has different arguments under {' and '.join(found)}")
    unknown = [str(key) for key, value in call.items() if not is_empty(value) and key not in (*_NO_ARGUMENTS, *ARGUMENT_KEYS)]
    if unknown and not given:
        raise RowError(
            "wrong_type", f"{what}: a tool call has {', '.join(unknown)} and none of {', '.join(ARGUMENT_KEYS)}, which are read"
        )
    return next(iter(found.values()), None)


def _spelled_arguments(arguments: Any, what: str) -> Any:
    if isinstance(arguments, str):
        return _object_or_text(arguments)
    if not isinstance(arguments, dict):
        raise RowError("wrong_type", f"{what}: arguments of a tool call must be an object, got {type(arguments).__name__}")
    return arguments


def _object_or_text(text: str) -> Any:
    value = _json_or_text(text) if text.strip() else {}
    return value if isinstance(value, dict) else text


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_tools(value: Any) -> str | None:
    """Tools as compact JSON text, from a list, an object or their JSON text; None where there are none.

    A tool of the list may be JSON text of an object, and so may a function's `parameters`, which gives a column of tools one
    type; axolotl reads it so, too.
    """
    value = _parsed(value, "tools")
    if not value:
        return None
    if not isinstance(value, list | dict):
        raise RowError("wrong_type", f"tools must be a list, got {type(value).__name__}")
    tools = [_tool(tool) for tool in (value if isinstance(value, list) else [value])]
    return compact([function for tool in tools for function in _declared(tool)], "tools")


def tools_within(metadata: Any) -> Any:
    """The `tools` of a row's `metadata`, an object or its JSON text, where they are tools and not their names; else None."""
    if isinstance(metadata, str) and '"tools"' in metadata:
        metadata = _json_or_text(metadata)
    tools = metadata.get("tools") if isinstance(metadata, dict) else None
    if isinstance(tools, str):
        tools = _json_or_text(tools)
    if not isinstance(tools, list):
        return None
    each = [_json_or_text(tool) if isinstance(tool, str) else tool for tool in tools]
    return tools if all(isinstance(tool, dict) and ("name" in tool or "function" in tool) for tool in each) else None


def _tool(tool: Any) -> Any:
    tool = _object_or_text(tool) if isinstance(tool, str) and tool.strip() else tool
    if not isinstance(tool, dict):
        raise RowError("wrong_type", f"a tool must be an object, or its JSON text, got {str(tool)[:60]!r}")
    if isinstance(function := tool.get("function"), dict):
        return tool | {"function": _function(function)}
    return _function(tool)


def _declared(tool: dict[str, Any]) -> list[Any]:
    """The functions of one of Gemini's tools, each a tool; another tool alone."""
    declared = tool.get("functionDeclarations") or tool.get("function_declarations")
    return [_tool(function) for function in declared] if isinstance(declared, list) and len(tool) == 1 else [tool]


def _function(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    if not isinstance(parameters, str) or not parameters.strip():
        return function
    return function | {"parameters": _object_or_text(parameters)}


def read_template_kwargs(value: Any) -> str | None:
    """Arguments for the chat template as compact JSON text, from an object or its JSON text; None where there are none."""
    value = _parsed(value, "chat_template_kwargs")
    if not value:
        return None
    if not isinstance(value, dict):
        raise RowError("wrong_type", f"chat_template_kwargs must be an object, got {type(value).__name__}")
    return compact(value, "chat_template_kwargs")


def compact(value: Any, what: str) -> str:
    """The value as JSON text without spaces. RowError where it is too deep or no Unicode."""
    try:
        canonical_json(value).encode()
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError as e:
        raise RowError("too_deep", f"{what}: {e}") from None
    except UnicodeEncodeError as e:
        raise RowError("bad_encoding", f"{what}: {e}") from None


def _parsed(value: Any, what: str) -> Any:
    if not (isinstance(value, str) and value.strip()):
        return value if not isinstance(value, str) else None
    return parsed_json(value, what)


def parsed_json(text: str, what: str) -> Any:
    """Parse the JSON text of a field. RowError names the field."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise RowError("broken_json", f"{what}: {e}{python_hint(text)}") from None


def python_hint(text: str) -> str:
    """What to do about text that Python's repr made where JSON belongs, empty for other text."""
    head = text.lstrip()
    if not re.match(r"[\[{]\s*(\{\s*)?'", head):
        return ""
    return "; these are Python literals, not JSON: write the file with json.dumps"
