"""The wire format of OpenAI's ``/v1/responses``.

Source: the API reference as the ``openai`` SDK 3.57 types it. A null is the same as a field that is left out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from phi3_serve.api.body_with_parameters import BodyWithParameters
from phi3_serve.api.body_without_parameters import BodyWithoutParameters
from phi3_serve.api.chat_messages import text_only
from phi3_serve.api.fields import GenerateKwargs, false, nothing, number
from phi3_serve.api.responses.tools import FunctionCallItem, FunctionCallOutputItem, ResponseToolFields
from phi3_serve.parameters import MAX_TOP_LOGPROBS, Characters

LOGPROBS = "message.output_text.logprobs"  # of what an answer may include
# The beginning of the type of an item → why it is not taken.
_NOT_TAKEN: Mapping[str, str] = {
    "item_reference": "Items are not stored here; send them in full.",
    "compaction": "Conversations are not compacted.",
}
_OWN_TOOLS = "The server runs no tools itself."
_EXAMPLE: dict[str, Any] = {"model": "phi-3-tiny", "input": "What is a castle?"}


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["input_text", "output_text"]
    """Pictures, sound and files are not offered."""
    text: Characters
    """The text. Several parts are joined without a separator."""
    annotations: Any = None
    """Without effect: citations in an earlier answer."""
    logprobs: Any = None
    """Without effect: log-probabilities of an earlier answer."""
    prompt_cache_breakpoint: Any = None
    """Without effect: the server finds common prefixes itself."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, given: Any) -> Any:
        return text_only(given)


class InputMessage(BaseModel):
    """One turn of a conversation, also one of an earlier answer."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["message"] = "message"
    """References are not offered."""
    role: Literal["user", "assistant", "system", "developer"]
    """The author of this turn; developer is OpenAI's newer word for system."""
    content: Characters | list[ContentPart]
    """The text. Text that spells a control token stays text."""
    id: Any = None
    """Without effect."""
    status: Any = None
    """Without effect."""
    phase: Any = None
    """Without effect."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        kind = str(given.get("type") or "message") if isinstance(given, dict) else "message"
        if kind != "message":
            reason = next((why for start, why in _NOT_TAKEN.items() if kind.startswith(start)), _OWN_TOOLS)
            raise PydanticCustomError("not_offered", "An item of this type is not taken. {reason}", {"reason": reason})
        return given


class ReasoningItem(BaseModel):
    """What another model thought before an earlier answer. It has no effect: the chat template does not write it."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")

    type: Literal["reasoning"]
    """Always this. All other fields are ignored."""


def _kind(item: Any) -> str:
    """The form of an item that is meant."""
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if kind in ("function_call", "function_call_output", "reasoning") else "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class TextConfig(BaseModel):
    """How the text is written."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    format: dict[str, Any] | None = None
    """The format of the answer: an object whose type is text, json_object, or json_schema with schema. strict is always
    true."""
    verbosity: Literal["medium"] | None = None
    """The model has no such setting; ask for a short answer in the instructions."""


class ResponseStreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers is not offered."""


Input = Characters | Annotated[list[InputItem], Len(1, 1024)]
_NO_TEMPLATES = "prompts are not stored here"


class ResponseInputTokensRequest(ResponseToolFields, BodyWithoutParameters):
    """A question whose tokens are counted."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: str
    """The model, as `/v1/models` lists it."""
    input: Input
    """The question, or the turns of a conversation."""
    instructions: Characters | None = None
    """The system message before the input."""
    text: TextConfig | None = None
    """The format of the answer."""


class ResponsesRequest(ResponseToolFields, BodyWithParameters):
    """A question, and how to answer it."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        extra="ignore",
        json_schema_extra={"examples": [{**_EXAMPLE, "max_output_tokens": 64, "temperature": 0}]},
    )

    model: str
    """The model that answers, as `/v1/models` lists it."""
    input: Input
    """The question, or the turns of a conversation, which the checkpoint's chat template writes."""
    instructions: Characters | None = None
    """The system message before the input."""
    stream: bool | None = None
    """Stream the answer as server-sent events."""
    stream_options: ResponseStreamOptions | None = None
    """Options of the stream; only with stream."""
    store: Annotated[bool | None, false("this server stores no answers")] = None
    """Nothing is stored, also if this is left out. OpenAI stores an answer then."""
    text: TextConfig | None = None
    """The format of the answer."""
    metadata: Annotated[dict[Characters, Characters], Len(0, 16)] | None = None
    """Records of the caller, which the answer repeats."""
    include: list[Characters] | None = None
    """What the answer shows beside the text. `message.output_text.logprobs` shows the log-probability of each token;
    all others concern tools and reasoning, and have no effect."""
    top_logprobs: Annotated[int, Ge(0), Le(MAX_TOP_LOGPROBS), number("top_logprobs")] | None = None
    """Return this many of the likeliest tokens at each position; above 0 it needs the log-probabilities in include."""
    prompt: Annotated[None, nothing(_NO_TEMPLATES)] = None
    """Always null."""
    prompt_cache_key: Characters | None = None
    """Requests with the same key go to the same replica if the config has `routing: prefix`."""
    generate_kwargs: GenerateKwargs | None = None
    """Any generate parameter by name (`extra_body` in the SDK)."""

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return LOGPROBS in (self.include or ()) or self.parameters.top_logprobs is not None

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it."""
        return {**super().names_sent, "prompt": "input", "tools": "tools"}


class ResponsesUsage(BaseModel):
    """Numbers of tokens."""

    input_tokens: int = Field(description="Tokens of the prompt.")
    input_tokens_details: dict[str, int] = Field(description="`cached_tokens` is 0: cached tokens are not told apart.")
    output_tokens: int = Field(description="Tokens of the answer.")
    output_tokens_details: dict[str, int] = Field(description="`reasoning_tokens` is 0.")
    total_tokens: int = Field(description="The sum of both.")


class ResponsesResponse(BaseModel):
    """An answer, as the `openai` SDK types it. It repeats the settings of the request."""

    id: str = Field(description="The id of the request.")
    object: Literal["response"] = Field(description="Always this.")
    created_at: int = Field(description="When the answer was begun, in seconds since 1970.")
    status: Literal["completed", "incomplete"] = Field(description="incomplete if the answer reached its length.")
    incomplete_details: dict[str, str] | None = Field(description="`reason` is max_output_tokens.")
    model: str = Field(description="The model that answered.")
    output: list[dict[str, Any]] = Field(
        description="One message with one part, `output_text`; or calls of tools, `function_call`."
    )
    usage: ResponsesUsage = Field(description="Tokens that were read and generated.")
    store: Literal[False] = Field(description="Always false.")
    warnings: list[str] | None = Field(None, description="Parameters that could not have their effect, if there are.")


class ResponseInputTokens(BaseModel):
    """The length of a question."""

    object: Literal["response.input_tokens"] = Field(default="response.input_tokens", description="Always this.")
    input_tokens: int = Field(description="Tokens of the instructions and the input, up to where the answer begins.")
