"""OpenAI's wire format: the bodies of requests and responses under ``/v1``.

Source: the API reference as the ``openai`` SDK 3.57 types it. A null is the same as a field that is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, cast

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from phi3_serve.api.body_with_parameters import BodyWithParameters
from phi3_serve.api.chat_messages import ChatCompletionMessages
from phi3_serve.api.fields import GenerateKwargs, number
from phi3_serve.api.function_tools import OpenAIToolFields
from phi3_serve.parameters import (
    MAX_SEQUENCES,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    Characters,
    GenerationParameters,
    StopString,
)

MAX_ANSWERS = 1024  # of all prompts of one call together
MAX_PROMPTS = MAX_ANSWERS
# At most the longest context of the Phi-3 family. The replica, which knows the vocabulary, checks the ids.
TokenIds = Annotated[list[Annotated[int, Ge(0), number("prompt")]], Len(1, 131_072)]

# The OpenAPI document has bounds as floats, of which none is 2**63 - 1.
_SEED = {"type": "integer", "minimum": -(2**63), "exclusiveMaximum": 2**63}


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    include_usage: bool | None = None
    """Send one more chunk before the end. It has the usage of the whole request and no choices."""
    continuous_usage_stats: bool | None = None
    """Each chunk has the usage up to it, as in vLLM. It implies include_usage, unless that is false."""
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers is not offered."""


class RequestBody(BodyWithParameters):
    """The fields of both endpoints."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False, extra="ignore")

    prompt_field: ClassVar[str]

    model: str
    """The model that answers, as `/v1/models` lists it. Other spellings of a catalogue name are accepted too."""
    max_tokens: Annotated[int, Ge(-1), number("max_tokens")] | None = None
    """Most tokens of the answer; -1 is no limit but the context. By default 16. 0 is for a completion that echoes its
    prompt, or that has prompt_logprobs."""
    temperature: Annotated[float, Ge(0), Le(2), number("temperature")] | None = None
    """Above 1 answers vary more, below 1 less; 0 always takes the likeliest token. By default 1."""
    top_p: Annotated[float, Ge(0), Le(1), number("top_p")] | None = None
    """Sample among the likeliest tokens whose probabilities reach this sum; by default 1."""
    n: Annotated[int, Ge(1), Le(MAX_SEQUENCES), number("n")] | None = None
    """Number of answers to one prompt; by default 1."""
    best_of: Annotated[int, Ge(1), Le(MAX_SEQUENCES), number("best_of")] | None = None
    """Number of answers that are sampled, of which the n with the highest log-probability per token are returned, the
    best first; by default n. Not in a stream. Beam search always returns the best."""
    stop: StopString | Annotated[list[StopString], Len(0, MAX_STOP_STRINGS)] | None = None
    """The answer ends before the first of these strings."""
    seed: Annotated[int, Ge(-(2**63)), Le(2**63 - 1), number("seed"), WithJsonSchema(_SEED)] | None = None
    """Makes sampling repeatable. Answer number i of n is sampled with seed + i."""
    presence_penalty: Annotated[float, Ge(-2), Le(2), number("presence_penalty")] | None = None
    """Subtracted from the score of each token that is in the answer already; by default 0."""
    frequency_penalty: Annotated[float, Ge(-2), Le(2), number("frequency_penalty")] | None = None
    """Subtracted from a token's score once for each time it is in the answer already; by default 0."""
    logit_bias: Annotated[dict[str, Annotated[float, Ge(-100), Le(100), number("logit_bias")]], Len(0, 1024)] | None = (
        None
    )
    """Token ids, as strings, and the number that is added to the score of each."""
    stream: bool | None = None
    """Stream the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of the stream; only with stream."""
    generate_kwargs: GenerateKwargs | None = None
    """Any generate parameter by name (`extra_body` in the SDK)."""
    add_special_tokens: bool | None = None
    """Put the special tokens before the prompt that the tokenizer puts before every text, as in vLLM. By default true
    for completions, and false for chat, where the chat template writes them. The tokenizers of Phi-3 put none."""
    return_token_ids: bool | None = None
    """Return the token ids of the prompt and of each answer, in a stream with each chunk, as in vLLM."""
    return_tokens_as_token_ids: bool | None = None
    """In log-probabilities, show a token as `token_id:5` in place of its text, as in vLLM."""
    prompt_cache_key: str | None = None
    """Requests with the same key go to the same replica if the config has `routing: prefix`."""

    @property
    def warnings(self) -> Sequence[str]:
        """Fields that had no effect."""
        return ()

    @property
    def num_answers(self) -> int:
        """Answers to each prompt."""
        return self.n or self.parameters.num_return_sequences or 1

    @property
    def num_candidates(self) -> int:
        """Answers that are generated for each prompt, of which the best are returned. Beam search picks them itself."""
        return self.num_answers if self.best_of is None or self.parameters.asks_for_beams else self.best_of

    @property
    def picks_best(self) -> bool:
        """Whether fewer answers are returned than are sampled."""
        return self.num_candidates > self.num_answers

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        asked: bool | int | None = getattr(self, "logprobs", None)
        return self.parameters.top_logprobs is not None or not (asked is None or asked is False)

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it; also those that only mean the same here."""
        logprobs = {"top_logprobs": "logprobs"} if "logprobs" in self.model_fields_set else {}
        return {**logprobs, **super().names_sent, "prompt": self.prompt_field}


class ChatCompletionRequest(OpenAIToolFields, RequestBody):
    """A conversation, and how to answer it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "phi-3-tiny",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "temperature": 0,
                }
            ]
        }
    )

    prompt_field = "messages"

    messages: ChatCompletionMessages
    """The conversation, which the checkpoint's chat template writes. The turns may have any order that the template
    takes. A system message that it leaves out, as Phi-3-medium's does, is written as in Phi-3-mini, or refused."""
    max_tokens: Annotated[int, Ge(1), number("max_tokens")] | Literal[-1] | None = None
    """Most tokens of the answer; -1 is no limit but the context. By default the rest of the context."""
    max_completion_tokens: Annotated[int, Ge(1), number("max_completion_tokens")] | None = None
    """The newer name of max_tokens; it wins over max_tokens."""
    logprobs: bool | None = None
    """Return the log-probability of each token under the model's own scores, in a stream with the text of the token."""
    top_logprobs: Annotated[int, Ge(0), Le(MAX_TOP_LOGPROBS), number("top_logprobs")] | None = None
    """Return this many of the likeliest tokens at each position; above 0 it needs logprobs."""
    echo: bool | None = None
    """Begin the answer with the last message, if it has the role of the answer, as in vLLM."""
    add_generation_prompt: bool | None = None
    """false: the prompt ends behind the last message, not where an answer of the assistant begins. The answer has the
    role of the last message then."""
    continue_final_message: bool | None = None
    """The answer continues the last message. It cannot be true together with add_generation_prompt."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Without effect, with a warning: the chat template gets no settings."""

    @property
    def warnings(self) -> Sequence[str]:
        """See the base class."""
        return ["`chat_template_kwargs` had no effect."] if self.chat_template_kwargs else ()

    @property
    def names_sent(self) -> Mapping[str, str]:
        """See the base class."""
        return {**super().names_sent, "tools": "functions" if self.is_legacy else "tools"}

    @property
    def ends_with_generation_prompt(self) -> bool:
        """Whether the answer is a new message of the assistant."""
        return self.add_generation_prompt is not False and not self.continue_final_message

    @property
    def answer_role(self) -> str:
        """Who gives the answer."""
        role = "assistant" if self.ends_with_generation_prompt else self.messages[-1].role
        return "user" if role in ("tool", "function") else role  # as the model reads it


class CompletionRequest(RequestBody):
    """A text, and how to continue it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "phi-3-tiny", "prompt": "<|user|> What is 2+2?<|end|><|assistant|>", "temperature": 0}
            ]
        }
    )

    prompt_field = "prompt"

    prompt: (
        Characters
        | Annotated[list[Characters], Len(1, MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Len(1, MAX_PROMPTS)]
    )
    """The text to continue, or its token ids, or a list of either, exactly as given. Text that spells a control token
    becomes the control token."""
    echo: bool | None = None
    """Put the prompt before the answer, and with logprobs its log-probabilities, too. Behind them, the
    log-probabilities have all tokens of the answer, also control tokens that the text lacks."""
    logprobs: Annotated[int, Ge(0), Le(MAX_TOP_LOGPROBS), number("logprobs")] | None = None
    """Return the log-probability of each token and of this many of the likeliest, in a stream with the text of the
    token."""

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts as a list, also if ``prompt`` is one text or one list of token ids."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast(Sequence[str | list[int]], [self.prompt] if is_one else self.prompt)

    @property
    def parameters(self) -> GenerationParameters:
        """See the base class. An echoed prompt has the log-probabilities that the answer has."""
        given = super().parameters
        if not self.echo or self.logprobs is None or given.prompt_logprobs is not None:
            return given
        return replace(given, prompt_logprobs=self.logprobs)

    @property
    def names_sent(self) -> Mapping[str, str]:
        """See the base class."""
        return {"prompt_logprobs": "logprobs", **super().names_sent}


class Model(BaseModel):
    """One served model."""

    id: str = Field(description="The name of the model in requests.")
    object: Literal["model"] = Field(default="model", description="Always this.")
    created: int = Field(description="When this server started, in seconds since 1970.")
    owned_by: str = Field(default="phi3-serve", description="Always this.")
    root: str = Field(description="The source of the weights.")
    parent: str | None = Field(None, description="The model that an adapter changes; null for a model.")
    max_model_len: int | None = Field(description="Tokens of prompt and answer together; null if not known yet.")
    state: str = Field(description="ready, loading, scaled_to_zero, unplaceable or failed.")
    detail: str | None = Field(None, description="The reason of the state.")


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[Model] = Field(description="The models in the order of the config.")


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int = Field(description="Tokens of the prompts; each prompt is counted once.")
    completion_tokens: int = Field(description="Tokens of all answers.")
    total_tokens: int = Field(description="The sum of both.")


class CompletionResponse(BaseModel):
    """A chat completion or a text completion, as the `openai` SDK types them."""

    id: str = Field(description="The id of the request.")
    object: str = Field(
        description="`chat.completion` or `text_completion`; in a stream of chat `chat.completion.chunk`."
    )
    created: int = Field(description="When the answer was begun, in seconds since 1970.")
    model: str = Field(description="The model that answered.")
    choices: list[dict[str, Any]] = Field(
        description="The answers: `index`, `message` (or `text`; in a stream `delta`), `finish_reason`, `logprobs`."
    )
    usage: Usage = Field(description="Tokens that were read and generated.")
    warnings: list[str] | None = Field(
        None,
        description="Generate parameters that could not have their effect, if there are; "
        "in a stream in the chunk with the finish_reason.",
    )
