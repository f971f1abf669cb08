"""ollama's wire format: the bodies of requests and responses under ``/api``.

Sources: ollama at fb307609 (docs/api), its Python client 0.6.3. A null is the same as a field that is left out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict, Field

from phi3_serve.api.body_with_parameters import BodyWithParameters
from phi3_serve.api.body_without_parameters import BodyWithoutParameters
from phi3_serve.api.fields import GenerateKwargs, OnlyAssistantMaySayNothing, nothing, number
from phi3_serve.api.function_tools import ToolFields
from phi3_serve.api.given_parameters import OPTIONS, is_name
from phi3_serve.api.refused_fields import not_a_field, unknown_fields
from phi3_serve.parameters import MAX_TOP_LOGPROBS, Characters

_EXAMPLE: dict[str, Any] = {"model": "phi-3-tiny", "stream": False, "options": {"temperature": 0}}
Nothing = Annotated[list[Any] | None, Len(0, 0), nothing("the model reads text only")]


class OllamaCalledFunction(BaseModel):
    """What an assistant has called."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: Characters
    """The name of the function."""
    arguments: dict[str, Any] | Characters = Field(default_factory=dict)
    """Its arguments."""
    index: Any = None
    """Without effect: the number of the call."""


class OllamaToolCall(BaseModel):
    """A call in an assistant's turn."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    function: OllamaCalledFunction
    """What was called."""
    id: Characters | None = None
    """By which the message with the result may name this call."""
    type: Literal["function"] = "function"
    """Other calls are not offered."""


class OllamaMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    """The author of this turn. A tool's turn is the result of a call; the model reads it as a turn of the user."""
    content: Annotated[Characters | None, OnlyAssistantMaySayNothing] = ""
    """The text. Text that spells a control token stays text."""
    thinking: Characters | None = None
    """What an assistant thought first. It has an effect if the checkpoint's chat template uses it; Phi-3's does not."""
    images: Nothing = None
    """Always empty."""
    tool_calls: list[OllamaToolCall] | None = None
    """What an assistant has called. The model reads it behind the content, in the form that it is asked for."""
    tool_name: Characters | None = None
    """The tool whose result a tool's turn has; by default that of the first call without a result."""
    name: Characters | None = None
    """An older name of tool_name."""
    tool_call_id: Characters | None = None
    """The call whose result a tool's turn has."""


class OllamaBody(BodyWithParameters):
    """The fields of both endpoints."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False, extra="ignore")

    holder: ClassVar[str] = OPTIONS
    prompt_field: ClassVar[str]

    model: Annotated[Characters, Len(1)]
    """The model that answers, as `/api/tags` lists it, with or without the tag `:latest`."""
    options: GenerateKwargs | None = None
    """Generate parameters by name, by ollama's names, too. Options of how ollama loads a model have no effect."""
    stream: bool | None = None
    """Stream the answer as lines of JSON; by default true."""
    keep_alive: Characters | Annotated[float, number("keep_alive")] | None = None
    """Without effect: the config of the server decides when a model sleeps."""
    logprobs: bool | None = None
    """Return the log-probability of each token of the text under the model's own scores."""
    top_logprobs: Annotated[int, Ge(0), Le(MAX_TOP_LOGPROBS), number("top_logprobs")] | None = None
    """Return this many of the likeliest tokens at each position; above 0 it needs logprobs."""

    @property
    def streams(self) -> bool:
        """Whether the answer is streamed."""
        return self.stream is not False

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it."""
        logprobs = {"top_logprobs": "logprobs"} if self.logprobs else {}
        return {**logprobs, **super().names_sent, "prompt": self.prompt_field, "tools": "tools"}

    @classmethod
    def known_parameters(cls, in_holder: Mapping[str, Any]) -> Mapping[str, Any]:
        """The generate parameters of the options. Others are refused, or say how ollama loads a model."""
        for name in unknown_fields(in_holder, ()):
            raise not_a_field(name, ())
        return {name: value for name, value in in_holder.items() if is_name(name)}


class OllamaChatRequest(ToolFields, OllamaBody):
    """A conversation, and how to answer it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_EXAMPLE, "messages": [{"role": "user", "content": "What is a castle?"}]}]}
    )

    prompt_field = "messages"

    messages: Annotated[list[OllamaMessage], Len(0, 1024)] | None = None
    """The conversation, which the checkpoint's chat template writes. Without any, the model is started, and the answer
    is empty."""


class OllamaGenerateRequest(OllamaBody):
    """A question, and how to answer it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_EXAMPLE, "prompt": "What is a castle?"}]})

    prompt_field = "prompt"

    prompt: Characters | None = None
    """The question, which the checkpoint's chat template writes. Without it, the model is started, and the answer is
    empty."""
    system: Characters | None = None
    """The system message before the question."""
    raw: bool | None = None
    """true: the prompt is a text to continue, exactly as given. Text that spells a control token becomes the control
    token."""
    template: Literal[""] | None = None
    """The template of the checkpoint applies."""
    context: Annotated[list[Any] | None, Len(0, 0), nothing("earlier turns are messages of /api/chat")] = None
    """Always empty: earlier turns are messages of `/api/chat`."""
    images: Nothing = None
    """Always empty."""


class OllamaShowRequest(BodyWithoutParameters):
    """The model to describe."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "phi-3-tiny"}]})

    model: Characters | None = None
    """The model, as `/api/tags` lists it."""
    name: Characters | None = None
    """An older name of model."""
    verbose: bool | None = None
    """Without effect: the answer has no lists of tokens."""


class OllamaStatistics(BaseModel):
    """What an answer took. Durations are in nanoseconds; the other three add up to total_duration."""

    total_duration: int | None = Field(None, description="From the arrival of the request to the end of the answer.")
    load_duration: int | None = Field(None, description="Until the answer was begun: the model loads, or others run.")
    prompt_eval_count: int | None = Field(None, description="Tokens of the prompt.")
    prompt_eval_duration: int | None = Field(None, description="From then until the first token.")
    eval_count: int | None = Field(None, description="Tokens of the answer.")
    eval_duration: int | None = Field(None, description="From the first token to the last.")
    logprobs: list[dict[str, Any]] | None = Field(
        None, description="`token`, `logprob`, `bytes` and `top_logprobs` of each token, in a stream of the next ones."
    )
    done_reason: str | None = Field(None, description="`stop` or `length`; `load` if nothing was asked.")
    warnings: list[str] | None = Field(None, description="Parameters that could not have their effect, if there are.")


class OllamaChatResponse(OllamaStatistics):
    """The answer to a conversation, or a part of it."""

    model: str = Field(description="The model, as the request names it.")
    created_at: str = Field(description="When this was written.")
    message: dict[str, Any] = Field(
        description="`role` and `content`, in a stream the next piece of it; or `tool_calls`."
    )
    done: bool = Field(description="Whether this is the last part. It has the durations and counts.")


class OllamaGenerateResponse(OllamaStatistics):
    """The answer to a question, or a part of it."""

    model: str = Field(description="The model, as the request names it.")
    created_at: str = Field(description="When this was written.")
    response: str = Field(description="The text, in a stream the next piece of it.")
    done: bool = Field(description="Whether this is the last part. It has the durations and counts.")


class OllamaModelDetails(BaseModel):
    """What a model is."""

    parent_model: str = Field(description="Of an adapter, the name of its model; else empty.")
    format: str = Field(description="The format of the weights.")
    family: str = Field(description="The architecture.")
    families: list[str] = Field(description="The architecture.")
    parameter_size: str = Field(description="Number of parameters, if it is known.")
    quantization_level: str = Field(
        description="INT8, INT4 or FP8, or else the dtype that the model computes in, if it is known."
    )


class OllamaModel(BaseModel):
    """One model."""

    name: str = Field(description="The name of the model in requests.")
    model: str = Field(description="The same.")
    size: int = Field(description="Bytes of the weights; 0 if not known.")
    digest: str = Field(description="A hash of the source of the weights and its revision.")
    details: OllamaModelDetails = Field(description="What the model is.")


class OllamaServedModel(OllamaModel):
    """One served model."""

    modified_at: str = Field(description="When this server started.")


class OllamaRunningModel(OllamaModel):
    """One model that is ready."""

    expires_at: str = Field(description="When the model may sleep if nobody asks it again.")
    size_vram: int = Field(description="Bytes of the weights on a GPU.")
    context_length: int | None = Field(description="Tokens of prompt and answer together; null if not known.")


class OllamaServedModels(BaseModel):
    """All served models."""

    models: list[OllamaServedModel] = Field(description="The models in the order of the config.")


class OllamaRunningModels(BaseModel):
    """The models that are ready."""

    models: list[OllamaRunningModel] = Field(description="The models in the order of the config.")


class OllamaShowResponse(BaseModel):
    """What the server knows of a model."""

    modified_at: str = Field(description="When this server started.")
    details: OllamaModelDetails = Field(description="What the model is.")
    model_info: dict[str, Any] = Field(description="Figures of its architecture, as far as they are known.")
    parameters: str = Field(description="The defaults of the options, one in each line.")
    capabilities: list[str] = Field(description="What the model can do.")


class OllamaVersion(BaseModel):
    """The version."""

    version: str = Field(description="The version of ollama whose API this is. Clients ask for a minimum.")
