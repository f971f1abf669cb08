"""The fields with which OpenAI's chat, and endpoints that take the same conversations, offer tools."""

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from phi3_serve.api.tools.offer import Choice, Offer, Tool, offer
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import Characters


class FunctionDefinition(BaseModel):
    """A function that the client can run."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: Characters
    """By which it is called: 1 to 128 letters, digits, and any of `_.:-`."""
    description: Characters | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """The JSON schema of its arguments, which are an object; by default it has none."""
    strict: bool | None = None
    """true: arguments always follow the schema. If a call is forced, they do so in any case. Otherwise they are an
    object that may not follow the schema, as with OpenAI: check them."""
    output_schema: Any = None
    """Without effect: what the function returns."""

    def tool(self, field: str) -> Tool:
        """The tool that ``field`` of the body offers."""
        return Tool(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            is_strict=bool(self.strict),
            field=field,
        )


class FunctionTool(BaseModel):
    """A tool, which is always a function of the client."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["function"] = "function"
    """Other tools are not offered: this server runs none itself."""
    function: FunctionDefinition
    """The function."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        return functions_only(given, "function")


def functions_only(given: Any, *own: str) -> Any:
    """``given``, a tool or a choice. ``own``: the types of a client's own tools, or of a choice among them.

    Raises:
        PydanticCustomError: it is no function of the client.
    """
    kind = given.get("type") if isinstance(given, dict) else None
    if isinstance(kind, str) and kind not in own:
        raise PydanticCustomError(
            "not_offered",
            "Tools of type {type} are not offered: this server runs no tools itself, and takes functions only.",
            {"type": kind[:64]},
        )
    return given


class FunctionName(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")

    name: Characters
    """That of an offered tool."""


class NamedTool(BaseModel):
    """One tool."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["function"]
    """Always this."""
    function: FunctionName
    """The function."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        return functions_only(given, "function", "allowed_tools")


class AllowedTools(BaseModel):
    """Some tools of those that are offered."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    mode: Literal["auto", "required"]
    """Whether one of them must be called."""
    tools: Annotated[list[NamedTool], Len(1, 128)]
    """The only tools that may be called."""


class AllowedToolChoice(BaseModel):
    """A choice among some tools."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["allowed_tools"]
    """Always this."""
    allowed_tools: AllowedTools
    """The tools."""


class ToolFields(BaseModel):
    """The fields that offer tools."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    tools: Annotated[list[FunctionTool], Len(0, 128)] | None = None
    """Functions of the client that the answer may call. The system message offers them to the model."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice | None = None
    """`auto`, the default: the answer may be calls. `required`: it is one or more calls whose arguments follow the
    schemas. A tool: it is one such call of this tool. `none`: no tools are offered. A format of the answer has no
    effect where a call is forced."""
    parallel_tool_calls: bool | None = None
    """false: the answer has one call at most; by default up to 16."""

    def offered(self) -> Offer | None:
        """What is offered.

        Raises:
            InvalidRequest: a tool or the choice is wrong.
        """
        tools = [tool.function.tool(f"tools.{number}.function") for number, tool in enumerate(self.tools or ())]
        return offer(tools, self._choice(), is_parallel=self.parallel_tool_calls is not False)

    def _choice(self) -> Choice:
        match self.tool_choice:
            case NamedTool() as named:
                return Choice(mode="required", names=[named.function.name], is_named=True)
            case AllowedToolChoice() as allowed:
                names = [tool.function.name for tool in allowed.allowed_tools.tools]
                return Choice(mode=allowed.allowed_tools.mode, names=names)
            case mode:
                return Choice(mode=mode or "auto")


class OpenAIToolFields(ToolFields):
    """The fields that offer tools, and those of OpenAI's older form."""

    functions: Annotated[list[FunctionDefinition], Len(0, 128)] | None = None
    """OpenAI's older form of tools. The answer then has the older form, too, and one call at most."""
    function_call: Literal["none", "auto"] | FunctionName | None = None
    """OpenAI's older form of tool_choice."""

    @property
    def is_legacy(self) -> bool:
        """Whether tools are offered in the older form."""
        return bool(self.functions)

    def offered(self) -> Offer | None:
        """See the base class."""
        if self.functions and self.tools:
            raise InvalidRequest("`tools` and `functions` exclude each other; send one of them.", "functions")
        if self.functions and self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest(
                "`tool_choice` asks for a call of `tools`; with `functions` send `function_call`.", "tool_choice"
            )
        if self.functions:
            tools = [function.tool(f"functions.{number}") for number, function in enumerate(self.functions)]
            return offer(tools, self._legacy_choice(), is_parallel=False)
        if isinstance(self.function_call, FunctionName):
            raise InvalidRequest("`function_call` asks for a call, but no `functions` are given.", "function_call")
        return super().offered()

    def _legacy_choice(self) -> Choice:
        match self.function_call:
            case FunctionName() as named:
                return Choice(mode="required", names=[named.name], is_named=True, field="function_call")
            case mode:
                return Choice(mode=mode or "auto", field="function_call")
