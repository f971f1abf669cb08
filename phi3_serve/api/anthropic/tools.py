"""Tools in Anthropic's wire format: what a request offers, and the blocks of calls and results."""

from typing import Annotated, Any, Literal, Self

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from phi3_serve.api.function_tools import functions_only
from phi3_serve.api.tools.offer import Choice, Offer, Tool, offer
from phi3_serve.parameters import Characters


class AnthropicTool(BaseModel):
    """A tool of the client."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: Characters
    """By which it is called: 1 to 128 letters, digits, and any of `_.:-`."""
    input_schema: dict[str, Any]
    """The JSON schema of its input, which is an object."""
    description: Characters | None = None
    """What it does, for the model."""
    type: Literal["custom"] | None = None
    """Other tools are not offered: this server runs none itself."""
    strict: bool | None = None
    """true: the input always follows the schema. If a call is forced, it does so in any case. Otherwise it is an object
    that may not follow the schema, as with Anthropic: check it."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    eager_input_streaming: Any = None
    """Without effect: the input of a forced call is streamed as it is written."""
    input_examples: Any = None
    """Without effect."""
    allowed_callers: Any = None
    """Without effect: the model alone calls."""
    defer_loading: Literal[False] | None = None
    """All tools are offered at once."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        return functions_only(given, "custom")


class AnthropicToolChoice(BaseModel):
    """Whether the answer calls a tool."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["auto", "any", "tool", "none"]
    """`auto`: the answer may be calls. `any`: it is one or more calls whose inputs follow the schemas. `tool`: one
    such call of the tool that is named. `none`: no tools are offered. A format of the answer has no effect where a call
    is forced."""
    name: Characters | None = None
    """The tool, with `tool`."""
    disable_parallel_tool_use: bool | None = None
    """true: the answer has one call at most; by default up to 16."""

    @model_validator(mode="after")
    def _has_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise PydanticCustomError("missing", "A choice of type tool needs the name of the tool.")
        return self


class AnthropicToolFields(BaseModel):
    """The fields that offer tools."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    tools: Annotated[list[AnthropicTool], Len(0, 128)] | None = None
    """Tools of the client that the answer may call. The system message offers them to the model."""
    tool_choice: AnthropicToolChoice | None = None
    """Whether the answer calls a tool; by default `auto`."""

    def offered(self) -> Offer | None:
        """What is offered.

        Raises:
            InvalidRequest: a tool or the choice is wrong.
        """
        tools = [
            Tool(
                name=tool.name,
                description=tool.description,
                parameters=tool.input_schema,
                is_strict=bool(tool.strict),
                field=f"tools.{number}",
                schema_name="input_schema",
            )
            for number, tool in enumerate(self.tools or ())
        ]
        given = self.tool_choice or AnthropicToolChoice(type="auto")
        return offer(tools, _choice(given), is_parallel=not given.disable_parallel_tool_use)


def _choice(given: AnthropicToolChoice) -> Choice:
    match given.type:
        case "tool":
            return Choice(mode="required", names=[given.name or ""], is_named=True)
        case "any":
            return Choice(mode="required")
        case mode:
            return Choice(mode=mode)


class ToolUseBlock(BaseModel):
    """A call in an assistant's turn."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["tool_use"]
    """Always this."""
    id: Characters
    """By which the block with the result names this call."""
    name: Characters
    """The tool."""
    input: dict[str, Any]
    """What it was called with."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    caller: Any = None
    """Without effect."""
    toolset_name: Any = None
    """Without effect."""
