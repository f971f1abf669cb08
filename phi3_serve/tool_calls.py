"""Calls of tools in the text of an answer: which are allowed, and how the model writes them.

Phi-3 was taught no form of calls. The one here is a JSON list, the form that Phi-4-mini was taught later:
``[{"name": "get_weather", "arguments": {"city": "Rome"}}]``. An answer that need not be a call may write its calls with
other whitespace, as one object without a list, and within a Markdown fence.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from phi3_serve.pickled_by_name import pickled_by_name

MAX_CALLS = 16  # in one answer; without a limit a weak model calls until its tokens are used up
LIST_BEGIN, LIST_SEPARATOR, LIST_END = "[", ", ", "]"
CALL_END = "}"
# Regular expressions, of Python and of Rust, for calls in an answer that need not be one.
SPACE = r"[ \t\r\n]{0,40}"
FENCE_BEGIN = rf"```[a-z]{{0,16}}{SPACE}"
FREE_LIST_BEGIN = rf"\[{SPACE}"
FENCE_END = "```"


@pickled_by_name
@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that an answer may call."""

    name: str
    schema: dict[str, Any]  # JSON schema of the arguments, which are an object
    field: str  # where the client has sent the schema, for errors
    is_strict: bool = False  # whether arguments always follow the schema, also in an answer that need not be a call


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalls:
    """The calls that an answer is, or may be."""

    tools: tuple[CallableTool, ...]
    is_forced: bool  # False: the answer may also be a text
    max_calls: int = MAX_CALLS
    text_schema: Any = None  # JSON schema of an answer that is a text; None: any text

    @property
    def needs_grammar(self) -> bool:
        """Whether not every text is an answer."""
        return self.is_forced or self.text_schema is not None or any(tool.is_strict for tool in self.tools)


def call_begin(name: str) -> str:
    """A call up to its arguments."""
    return f'{{"name": {json.dumps(name)}, "arguments": '


def calls_text(calls: Iterable[tuple[str, str]]) -> str:
    """The text of calls: pairs of a name and its arguments as JSON."""
    each = (f"{call_begin(name)}{arguments}{CALL_END}" for name, arguments in calls)
    return f"{LIST_BEGIN}{LIST_SEPARATOR.join(each)}{LIST_END}"


def free_call_begin(names: Iterable[str]) -> str:
    """A regular expression for ``call_begin`` of any of ``names``, up to the colon, with free whitespace."""
    any_name = "|".join(map(re.escape, names))
    name, arguments = f'"name"{SPACE}:{SPACE}"({any_name})"', f'"arguments"{SPACE}:'
    return rf"\{{{SPACE}{name}{SPACE},{SPACE}{arguments}"
