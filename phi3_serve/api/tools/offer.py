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
    schema_name: str = "parameters"  # what its field calls the JSON schema

    @property
    def schema_field(self) -> str:
        """Where the client sent the JSON schema."""
        return f"{self.field}.{self.schema_name}"


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
        tools=tuple(CallableTool(tool.name, _schema(tool), tool.schema_field, tool.is_strict) for tool in chosen),
        is_forced=choice.mode == "required",
        max_calls=MAX_CALLS if is_parallel and not choice.is_named else 1,
    )
    return Offer(tools=tuple(chosen), calls=calls, is_named=choice.is_named)


def _check(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"`tools` has {len(tools)} tools; the most is {MAX_TOOLS}.", "tools")
    seen: set[str] = set()
    for tool in tools:
        name = f"{tool.field}.name"
        if not _NAME.fullmatch(tool.name):
            raise InvalidRequest(
                f"`{name}` is {tool.name[:64]!r}; a name has 1 to 128 letters, digits, and any of _.:-", name
            )
        if tool.name in seen:
            raise InvalidRequest(f"`{name}` is {tool.name}, the name of an earlier tool.", name)
        seen.add(tool.name)
        check_json(tool.parameters, tool.schema_field)
        if not _allows_object(tool.parameters or {}):
            kind = str((tool.parameters or {})["type"])[:64]
            at = f"{tool.schema_field}.type"
            raise InvalidRequest(f"`{at}` is {kind!r}; the arguments of a call are an object.", at)


def _allows_object(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


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
    given = {**(_NO_PARAMETERS if tool.parameters is None else tool.parameters), "type": "object"}
    is_closed = "properties" in given and not any(keyword in given for keyword in _OPEN) and _names_required(given)
    return {**given, "additionalProperties": False} if is_closed else given


def _names_required(schema: Mapping[str, Any]) -> bool:
    """Whether ``properties`` has all properties that are required."""
    properties, required = schema["properties"], schema.get("required") or ()
    return not (isinstance(properties, dict) and isinstance(required, list)) or all(
        name in properties for name in required if isinstance(name, str)
    )
