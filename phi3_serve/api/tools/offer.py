"""The tools that an answer may or must call: what every API makes of its own fields."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phi3_serve.api.json_values import check_json
from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.tool_calls import MAX_CALLS, CallableTool, ToolCalls

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# With one of these, other properties than those of ``properties`` may be meant.
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf", "if")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the client can run."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None  # JSON schema of the arguments
    is_strict: bool = False
    field: str  # where the client sent it


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which tools the answer may or must call."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: Sequence[str] | None = None  # the only ones that may be called; None: all
    is_named: bool = False  # one tool is named, and is called once
    field: str = "tool_choice"  # where the client sent it


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The tools that one answer may or must call."""

    tools: tuple[Tool, ...]
    calls: ToolCalls
    is_named: bool


def offer(tools: Sequence[Tool], choice: Choice, *, is_parallel: bool = True) -> Offer | None:
    """What is offered to the model; None if nothing is.

    Raises:
        InvalidRequest: a tool or the choice is wrong.
    """
    _check(tools)
    if not tools and choice.mode == "required":
        raise InvalidRequest(f"`{choice.field}` asks for a call, but no tools are given.", choice.field)
    chosen = [tool for tool in tools if choice.names is None or tool.name in choice.names]
    _check_choice(tools, choice)
    if not chosen or choice.mode == "none":
        return None
    calls = ToolCalls(
        tools=tuple(CallableTool(tool.name, _schema(tool), tool.is_strict) for tool in chosen),
        is_forced=choice.mode == "required",
        max_calls=MAX_CALLS if is_parallel and not choice.is_named else 1,
    )
    return Offer(tools=tuple(chosen), calls=calls, is_named=choice.is_named)


def _check(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"`tools` has {len(tools)} tools; the most is {MAX_TOOLS}.", "tools")
    seen: set[str] = set()
    for tool in tools:
        if not _NAME.fullmatch(tool.name):
            raise InvalidRequest(
                f"`{tool.field}` has the name {tool.name[:64]!r}; a name has 1 to 128 letters, digits, and any of _.:-",
                tool.field,
            )
        if tool.name in seen:
            raise InvalidRequest(f"`{tool.field}` has the name {tool.name} of an earlier tool.", tool.field)
        seen.add(tool.name)
        check_json(tool.parameters, tool.field)
        if (kind := (tool.parameters or _NO_PARAMETERS).get("type", "object")) != "object":
            raise InvalidRequest(
                f"`{tool.field}` has parameters of type {str(kind)[:64]!r}; the arguments of a call are an object.",
                tool.field,
            )


def _check_choice(tools: Iterable[Tool], choice: Choice) -> None:
    names = [tool.name for tool in tools]
    for name in choice.names or ():
        if name not in names:
            hint = did_you_mean(name, names, quote="")
            raise InvalidRequest(
                f"`{choice.field}` names {name[:128]!r}, which is not a tool of this request{hint}", choice.field
            )


def _schema(tool: Tool) -> dict[str, Any]:
    """The JSON schema of the arguments, which are always an object.

    A weak model would invent properties without end, so those that the schema does not name are left out, unless the
    schema says something of them.
    """
    given = {"type": "object", **(_NO_PARAMETERS if tool.parameters is None else tool.parameters)}
    is_closed = "properties" in given and not any(keyword in given for keyword in _OPEN) and _names_required(given)
    return {**given, "additionalProperties": False} if is_closed else given


def _names_required(schema: Mapping[str, Any]) -> bool:
    """Whether ``properties`` has all properties that are required."""
    properties, required = schema["properties"], schema.get("required") or ()
    return not (isinstance(properties, dict) and isinstance(required, list)) or all(
        name in properties for name in required if isinstance(name, str)
    )
