"""The fields with which ``/v1/responses`` offers tools, and the items of their calls."""

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, model_validator

from phi3_serve.api.function_tools import FunctionDefinition, functions_only
from phi3_serve.api.tools.offer import Choice, Offer, offer
from phi3_serve.parameters import Characters

Status = Literal["in_progress", "completed", "incomplete"]


class ResponseTool(FunctionDefinition):
    """A tool, which is always a function of the client."""

    type: Literal["function"] = "function"
    """Other tools are not offered: this server runs none itself."""
    allowed_callers: Any = None
    """Without effect: the model alone calls."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        return functions_only(given, "function")


class ResponseToolName(BaseModel):
    """One tool."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["function"]
    """Always this."""
    name: Characters
    """The name of the tool."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        return functions_only(given, "function", "allowed_tools")


class ResponseAllowedTools(BaseModel):
    """A choice among some tools."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["allowed_tools"]
    """Always this."""
    mode: Literal["auto", "required"]
    """Whether one of them must be called."""
    tools: Annotated[list[ResponseToolName], Len(1, 128)]
    """The only tools that may be called."""


class ResponseToolFields(BaseModel):
    """The fields that offer tools."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    tools: Annotated[list[ResponseTool], Len(0, 128)] | None = None
    """Functions of the client that the answer may call. The system message offers them to the model."""
    tool_choice: Literal["none", "auto", "required"] | ResponseToolName | ResponseAllowedTools | None = None
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
        tools = [tool.tool(f"tools.{number}") for number, tool in enumerate(self.tools or ())]
        return offer(tools, self._choice(), is_parallel=self.parallel_tool_calls is not False)

    def _choice(self) -> Choice:
        match self.tool_choice:
            case ResponseToolName(name=name):
                return Choice(mode="required", names=[name], is_named=True)
            case ResponseAllowedTools(mode=mode, tools=tools):
                return Choice(mode=mode, names=[tool.name for tool in tools])
            case mode:
                return Choice(mode=mode or "auto")


class FunctionCallItem(BaseModel):
    """A call in an earlier answer."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")

    type: Literal["function_call"]
    """Always this."""
    call_id: Characters
    """By which the item with the result names this call."""
    name: Characters
    """The name of the function."""
    arguments: Characters
    """Its arguments as JSON."""


class FunctionCallOutputText(BaseModel):
    """A part of a result."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")

    type: Literal["input_text"]
    """Pictures and files are not offered."""
    text: Characters
    """The text. Several parts are joined without a separator."""


class FunctionCallOutputItem(BaseModel):
    """The result of a call."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")

    type: Literal["function_call_output"]
    """Always this."""
    call_id: Characters | None = None
    """The call of an earlier item."""
    name: Characters | None = None
    """The function that was called, if call_id is left out."""
    output: Characters | list[FunctionCallOutputText]
    """The result. The model reads it as a turn of the user."""

    @property
    def text(self) -> str:
        """The result in one piece."""
        output = self.output
        return output if isinstance(output, str) else "".join(part.text for part in output)
