"""Anthropic's wire format: the bodies of requests and responses under ``/v1/messages``.

Source: the API reference as the ``anthropic`` SDK 2.14 types it. A null is the same as a field that is left out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Len
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from phi3_serve.api.anthropic.tools import AnthropicToolFields, ToolUseBlock
from phi3_serve.api.body_with_parameters import BodyWithParameters
from phi3_serve.api.body_without_parameters import BodyWithoutParameters
from phi3_serve.api.fields import GenerateKwargs, number
from phi3_serve.parameters import Characters

_OWN_TOOLS = "The server runs no tools itself."
# The type of a block → why it is not taken.
_NOT_TAKEN: Mapping[str, str] = {
    "image": "Pictures are not offered: the model reads text only.",
    "document": "Documents are not offered: the model reads text only.",
    "server_tool_use": _OWN_TOOLS,
    "web_search_tool_result": _OWN_TOOLS,
    "search_result": "Search results are not offered; send their text.",
    "thinking": "Phi-3 has no separate reasoning.",
    "redacted_thinking": "Phi-3 has no separate reasoning.",
}
_EXAMPLE: dict[str, Any] = {
    "model": "phi-3-tiny",
    "messages": [{"role": "user", "content": "What is a castle?"}],
}


class TextBlock(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["text"]
    """Pictures and documents are not offered."""
    text: Characters
    """The text. Several blocks are joined without a separator."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    citations: Any = None
    """Without effect: citations in an earlier answer."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        if isinstance(given, dict) and (reason := _NOT_TAKEN.get(str(given.get("type")))):
            raise PydanticCustomError("not_offered", "{reason}", {"reason": reason})
        return given


Content = Characters | list[TextBlock]


class ToolResultBlock(BaseModel):
    """The result of a call in a user's turn."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["tool_result"]
    """Always this."""
    tool_use_id: Characters
    """The call of an earlier turn."""
    content: Content | None = None
    """The result. The model reads it as a part of what the user says."""
    is_error: bool | None = None
    """true: the model reads "Error:" before it."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    toolset_name: Any = None
    """Without effect."""

    @property
    def text(self) -> str:
        """The result in one piece."""
        text = text_of(self.content or "")
        return f"Error: {text}" if self.is_error else text


def text_of(content: Content) -> str:
    """``content`` in one piece."""
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _kind(block: Any) -> str:
    """The form of a block that is meant."""
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if kind in ("tool_use", "tool_result") else "text"


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    Discriminator(_kind),
]


class MessageParam(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    role: Literal["user", "assistant", "system"]
    """The author of this turn."""
    content: Characters | list[Block]
    """The text, the calls of an assistant, or the results that a user sends. Text that spells a control token stays
    text."""


Messages = Annotated[list[MessageParam], Len(1, 1024)]


class CountTokensRequest(AnthropicToolFields, BodyWithoutParameters):
    """A conversation whose tokens are counted."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: str
    """The model, as `/v1/models` lists it."""
    messages: Messages
    """The conversation."""
    system: Content | None = None
    """The system prompt, which stands before the messages."""
    output_config: Any = None
    """Without effect: the format of the answer adds no token to the conversation."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""


class OutputConfig(BaseModel):
    """How the answer is written."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    format: dict[str, Any] | None = None
    """The format of the answer: an object whose type is json_schema, with schema."""
    effort: Literal["high"] | None = None
    """The model has no such setting."""


class MessagesRequest(AnthropicToolFields, BodyWithParameters):
    """A conversation, and how to answer it."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        extra="ignore",
        json_schema_extra={"examples": [{**_EXAMPLE, "max_tokens": 64, "temperature": 0}]},
    )

    model: str
    """The model that answers, as `/v1/models` lists it."""
    max_tokens: Annotated[int, Ge(1), number("max_tokens")]
    """Most tokens of the answer."""
    messages: Messages
    """The conversation, which the checkpoint's chat template writes. The answer continues a last message of the
    assistant."""
    system: Content | None = None
    """The system prompt, which stands before the messages."""
    output_config: OutputConfig | None = None
    """The format of the answer."""
    stream: bool | None = None
    """Stream the answer as server-sent events."""
    service_tier: Literal["auto", "standard_only"] | None = None
    """Without effect: all requests have the same tier."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    generate_kwargs: GenerateKwargs | None = None
    """Any generate parameter by name (`extra_body` in the SDK)."""

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it."""
        length = {"max_new_tokens": "max_tokens", "max_length": "max_tokens"}
        return {**length, **super().names_sent, "prompt": "messages", "tools": "tools"}


class MessagesUsage(BaseModel):
    """Numbers of tokens."""

    input_tokens: int = Field(description="Tokens of the prompt.")
    cache_creation_input_tokens: Literal[0] = Field(description="Always 0: cached tokens are not told apart.")
    cache_read_input_tokens: Literal[0] = Field(description="Always 0: cached tokens are not told apart.")
    output_tokens: int = Field(description="Tokens of the answer.")


class MessagesResponse(BaseModel):
    """An answer, as the `anthropic` SDK types it."""

    id: str = Field(description="The id of the request.")
    type: Literal["message"] = Field(description="Always this.")
    role: Literal["assistant"] = Field(description="Always this.")
    model: str = Field(description="The model that answered.")
    content: list[dict[str, Any]] = Field(description="One block of text, or calls of tools, `tool_use`.")
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] = Field(
        description="Why the answer ended."
    )
    stop_sequence: str | None = Field(description="The string of stop_sequences that ended the answer.")
    usage: MessagesUsage = Field(description="Tokens that were read and generated.")
    warnings: list[str] | None = Field(None, description="Parameters that could not have their effect, if there are.")


class CountTokensResponse(BaseModel):
    """The length of a conversation."""

    input_tokens: int = Field(description="Tokens of the conversation, up to where the answer begins.")
