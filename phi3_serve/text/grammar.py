"""What an answer must be, as a grammar in the syntax of llguidance, and errors that name the place.

The syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. JSON schemas:
https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import MAX_SCHEMA
from phi3_serve.resolved_parameters import StructuredOutput
from phi3_serve.tool_calls import (
    CALL_END,
    FENCE_BEGIN,
    FENCE_END,
    FREE_LIST_BEGIN,
    LIST_BEGIN,
    LIST_END,
    LIST_SEPARATOR,
    SPACE,
    CallableTool,
    ToolCalls,
    call_begin,
    free_call_begin,
)

# Between two tokens of JSON: a space, or a new line and its indentation. Without a limit a weak model writes whitespace
# until its tokens are used up.
WHITESPACE = r"\n[ \t]{0,64}|[ ]"
MAX_DEPTH = 100  # schemas within schemas; llguidance takes 128 levels of JSON
MAX_KEY_SHOWN = 128  # characters
MAX_PLACES_TRIED = 256  # to find the place of an error; each takes about a millisecond

# llguidance would choose tokens itself where the grammar leaves one text. The model does, as everywhere.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_ANY_OBJECT = {"type": "object"}
_JSON_OPTIONS = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
_PLACE = re.compile(r"\A(?:at )?(\d+)\((\d+)\): ")
_EXCERPT = re.compile(r"\n +\d+ \| .*", re.DOTALL)
_SCHEMAS_BY_NAME = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = (
    "items",
    "additionalProperties",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
)

Place = tuple[str, ...]
"""The keys and numbers from a JSON schema to a part of it."""
Compile = Callable[[str], str | None]
"""Compiles a grammar and returns the message of llguidance's error; None if there is none."""


# llguidance allows a little more than these formats do (its json_schema_test_suite): 29 February in every year, leap
# seconds at any time, long host names and those with "--". Each pattern allows a little less.
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = f"(?:{_YEAR}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,9})?[zZ+-].*"
_LABEL = "[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*"
_EXACT: Mapping[str, Mapping[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}[tT]{_TIME}$"},
    "hostname": {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$", "maxLength": 253},
}


def grammar_of(wanted: StructuredOutput) -> str:
    """The grammar of ``wanted``. Whether it compiles is not checked.

    Raises:
        InvalidRequest: the value is not JSON, is too long, or cannot be read as a grammar.
    """
    match wanted.kind:
        case "json_schema":
            return _of_schema(_schema(wanted))
        case "regex":
            return f"start: /{llguidance.regex_to_lark(wanted.value, use_ascii='d')}/{_OPTIONS}"
        case "choice":
            return f"start: {' | '.join(json.dumps(text, ensure_ascii=False) for text in wanted.value)}{_OPTIONS}"
        case "grammar":
            return _lark(wanted) + _OPTIONS
        case "tools":
            calls: ToolCalls = wanted.value
            return (_only_calls(calls) if calls.is_forced else _calls_or_text(calls)) + _OPTIONS


def compile_error(wanted: StructuredOutput, message: str, compile_: Compile) -> InvalidRequest:
    """The error for ``wanted``, whose grammar llguidance refuses with ``message``."""
    if wanted.kind == "tools":
        return _tools_error(wanted.value, message, compile_)
    if wanted.kind == "json_schema":
        return _error_in_schema(_schema(wanted), message, compile_)
    line = _PLACE.match(message)
    is_lark = wanted.kind == "grammar" and _lark(wanted) == wanted.value
    at = f" at line {line[1]}, column {line[2]}" if line and is_lark else ""
    return InvalidRequest(f"`{wanted.kind}` cannot be compiled{at}: {_reason(message)}.", wanted.kind)


def _tools_error(calls: ToolCalls, message: str, compile_: Compile) -> InvalidRequest:
    """The error for ``calls``. It names the schema that alone is refused, too, if there is one."""
    for tool in calls.tools:
        refused = compile_(_of_schema(tool.schema, tool)) if calls.is_forced or tool.is_strict else None
        if refused is not None:
            return _error_in_schema(tool.schema, refused, compile_, tool)
    if calls.text_schema is not None:
        of_text = StructuredOutput("json_schema", calls.text_schema)
        if (refused := compile_(grammar_of(of_text))) is not None:
            return compile_error(of_text, refused, compile_)
    return InvalidRequest(f"`tools` cannot be compiled: {_reason(message)}.", "tools")


def _error_in_schema(schema: Any, message: str, compile_: Compile, tool: CallableTool | None = None) -> InvalidRequest:
    reason = _reason(message)
    return _schema_error(_place_in_schema(schema, reason, compile_), reason, tool)


def _schema_error(place: Place, reason: str, tool: CallableTool | None) -> InvalidRequest:
    """The error for the part at ``place`` of the schema of ``tool``, or of the parameter ``json_schema``."""
    place = tuple(key[:MAX_KEY_SHOWN] for key in place)
    if tool is None:
        pointer = "/".join(("#", *(key.replace("~", "~0").replace("/", "~1") for key in place)))
        return InvalidRequest(f"`json_schema` cannot be compiled at {pointer}: {reason}.", "json_schema")
    field = ".".join((tool.field, *place))
    return InvalidRequest(f"`{field}` cannot be compiled: {reason}.", field)


def _reason(message: str) -> str:
    """Why llguidance refuses a grammar, without the place."""
    message = message.removesuffix("<non-verbose/>").strip()
    reason = _EXCERPT.sub("", _PLACE.sub("", message)).strip().removeprefix("failed to compile JSON schema: ")
    if reason == "NoExtensionBias":  # llguidance's word
        return "it allows no text"
    return reason[:1000].rstrip(".")


def _only_calls(calls: ToolCalls) -> str:
    """As ``tool_calls.calls_text`` writes them."""
    more = "" if calls.max_calls == 1 else f" ({json.dumps(LIST_SEPARATOR)} call){{0,{calls.max_calls - 1}}}"
    rules = [f"start: {json.dumps(LIST_BEGIN)} call{more} {json.dumps(LIST_END)}", _any_call(calls)]
    for number, tool in enumerate(calls.tools):
        rules += [
            f"call_{number}: {json.dumps(call_begin(tool.name))} arguments_{number} {json.dumps(CALL_END)}",
            f"arguments_{number}: %json {_json_schema(tool.schema, tool)}",
        ]
    return "\n".join(rules)


def _calls_or_text(calls: ToolCalls) -> str:
    """Calls, or a text. A text that begins as a call of an offered tool does must go on as one."""
    call = free_call_begin(tool.name for tool in calls.tools)
    if calls.text_schema is None:
        begins = [f"{fence}{bracket}" for fence in ("", FENCE_BEGIN) for bracket in ("", FREE_LIST_BEGIN)]
        any_begin = f"(?:{FENCE_BEGIN})?(?:{FREE_LIST_BEGIN})?{call}"
        text = f"text: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:{SPACE}{any_begin}.*)/"
    else:
        begins = [FREE_LIST_BEGIN]  # no object begins with it, so the two cannot be confused
        text = f"text: %json {_json_schema(_schema_of_object(calls.text_schema))}"
    more = "" if calls.max_calls == 1 else f'(space "," space call){{0,{calls.max_calls - 1}}}'
    rules = [text, f"space: /{SPACE}/", f'rest: space "}}" {more} space "]"', _any_call(calls)]
    forms = ["text"]
    for number, tool in enumerate(calls.tools):
        begin, schema = free_call_begin([tool.name]), tool.schema if tool.is_strict else _ANY_OBJECT
        rules += [
            f'call_{number}: /{begin}/ arguments_{number} space "}}"',
            f"arguments_{number}: space %json {_json_schema(schema, tool)}",
        ]
        for before in begins:  # each up to the arguments is one lexeme: where it is full, the lexeme of the text ends
            end = "rest" if before.endswith(FREE_LIST_BEGIN) else 'space "}"'
            fence_end = f" space {json.dumps(FENCE_END)}" if before.startswith(FENCE_BEGIN) else ""
            forms.append(f"/{SPACE}{before}{begin}/ arguments_{number} {end}{fence_end}")
    return "\n".join([f"start: {' | '.join(forms)}", *rules])


def _any_call(calls: ToolCalls) -> str:
    return f"call: {' | '.join(f'call_{number}' for number in range(len(calls.tools)))}"


def _schema_of_object(text_schema: Any) -> Any:
    schema = _schema(StructuredOutput("json_schema", text_schema))
    kind = schema.get("type", "object") if isinstance(schema, dict) else None
    if kind != "object":
        raise InvalidRequest("`json_schema` must be of an object if `tools` are offered, too.", "json_schema")
    return {**schema, "type": "object"}


def _schema(wanted: StructuredOutput) -> Any:
    schema = wanted.value
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        num_characters = len(json.dumps(schema))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`json_schema` is a text that is not JSON: {error}.", "json_schema") from error
    if num_characters > MAX_SCHEMA:
        raise InvalidRequest(
            f"`json_schema` has {num_characters:,} characters of JSON; the most is {MAX_SCHEMA:,}.", "json_schema"
        )
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("`json_schema` must be a JSON schema: an object, true or false.", "json_schema")
    return schema


def _of_schema(schema: Any, tool: CallableTool | None = None) -> str:
    return f"start: %json {_json_schema(schema, tool)}{_OPTIONS}"


def _json_schema(schema: Any, tool: CallableTool | None = None) -> str:
    """``schema``, of ``tool`` or of the parameter, as llguidance takes it.

    Options of llguidance in the schema itself are replaced: they could turn the guarantee off.
    """
    exact = _exact({} if schema is True else schema, tool)
    return json.dumps({**exact, "x-guidance": _JSON_OPTIONS} if isinstance(exact, dict) else exact)


def _exact(schema: Any, tool: CallableTool | None, place: Place = (), depth: int = 0) -> Any:
    """``schema`` with the additions that make llguidance allow no more than it says.

    Raises:
        InvalidRequest: no addition can do that, or the schema is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise _schema_error((), f"it is nested more than {MAX_DEPTH} schemas deep", tool)
    if not isinstance(schema, dict):
        return schema
    if (reason := _counted_keys(schema)) is not None:
        raise _schema_error(place, reason, tool)
    exact = dict(schema)
    for keyword, value in schema.items():
        at = (*place, keyword)
        if keyword in _SCHEMAS_BY_NAME and isinstance(value, dict):
            exact[keyword] = {name: _exact(inner, tool, (*at, name), depth + 1) for name, inner in value.items()}
        elif keyword in _LISTS_OF_SCHEMAS and isinstance(value, list):
            exact[keyword] = [_exact(inner, tool, (*at, str(n)), depth + 1) for n, inner in enumerate(value)]
        elif keyword in _SCHEMAS:
            exact[keyword] = _exact(value, tool, at, depth + 1)
    if isinstance(format_ := schema.get("format"), str) and format_ in _EXACT:
        all_of = exact.get("allOf", [])
        exact["allOf"] = [*all_of, _EXACT[format_]] if isinstance(all_of, list) else all_of
    return exact


def _counted_keys(schema: Mapping[str, Any]) -> str | None:
    """Why the number of properties cannot be held, if it cannot.

    With llguidance a key that is not in ``properties`` can come twice, and a reader then finds fewer properties.
    """
    least, required = schema.get("minProperties"), schema.get("required")
    num_required = len(required) if isinstance(required, list) else 0
    if not isinstance(least, int) or least <= num_required + 1:
        return None
    return (
        f"`minProperties` is {least} and {num_required} properties are required; at most one more than those that are "
        "required can be asked for"
    )


def _lark(wanted: StructuredOutput) -> str:
    try:
        return any_to_lark(wanted.value)
    except Exception as error:  # the library raises several kinds, RecursionError included
        raise InvalidRequest(f"`grammar` cannot be read as GBNF: {error}."[:1000], "grammar") from error


def _place_in_schema(schema: Any, reason: str, compile_: Compile) -> Place:
    """The smallest part of ``schema`` that llguidance refuses for the same ``reason``."""
    definitions = {k: schema[k] for k in ("$defs", "definitions") if isinstance(schema, dict) and k in schema}
    place: Place = ()
    num_tried = 0
    parts = _parts(schema)
    while (part := next(parts, None)) is not None and (num_tried := num_tried + 1) <= MAX_PLACES_TRIED:
        keys, inner = part
        if not isinstance(inner, dict):
            continue
        message = compile_(_of_schema({**definitions, **inner}))
        if message is not None and reason in message:
            place, parts = (*place, *keys), _parts(inner)
    return place


def _parts(schema: Any) -> Iterator[tuple[Place, Any]]:
    """The schemas within ``schema``, and their places."""
    if not isinstance(schema, dict):
        return
    for keyword in _SCHEMAS_BY_NAME:
        named = schema.get(keyword)
        for name, inner in named.items() if isinstance(named, Mapping) else ():
            yield (keyword, str(name)), inner
    for keyword in _LISTS_OF_SCHEMAS:
        listed = schema.get(keyword)
        for number, inner in enumerate(listed) if isinstance(listed, list) else ():
            yield (keyword, str(number)), inner
    for keyword in _SCHEMAS:
        if keyword in schema:
            yield (keyword,), schema[keyword]
