"""OpenAI's wire format: what ``/v1`` takes, and what that asks of a replica.

Source: the API reference as the ``openai`` SDK 3.57 types it. Every field that it documents is honoured or refused by
name with the reason; a null, or the value that asks for nothing, passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict, model_validator

from phi3_serve import core
from phi3_serve.api.fields import GenerateKwargs, number
from phi3_serve.core import GenerationRequest, RawPrompt, TokenPrompt
from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.parameters import MAX_SEQUENCES, MAX_TOP_LOGPROBS, NAMES, Characters, GenerationParameters, StopString
from phi3_serve.text.template import render

MAX_PROMPTS = 16
# Most ids of a prompt: the longest context of the family. The vocabulary is checked where it is known.
TokenIds = Annotated[list[Annotated[int, Ge(0), number("prompt")]], Len(1, 131_072)]
_WHOLE_CONTEXT = 2**31 - 1  # as max_length it is cut to the model's context
# temperature 1 and nothing cut off: what OpenAI documents, and not transformers' greedy choice or its top_k of 50
_SAMPLED = GenerationParameters(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_length=_WHOLE_CONTEXT)
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

_TOOLS = "tools are not offered: Phi-3 was not trained to call any"
_TEXT_ONLY = "the model reads and writes text only"
_PLATFORM = "it belongs to OpenAI's platform; nothing is kept or looked up here"
# Refused by name with the reason, unless the value asks for nothing.
REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "tools": (_TOOLS, ([],)),
    "tool_choice": (_TOOLS, ("none", "auto")),
    "parallel_tool_calls": (_TOOLS, (True, False)),
    "functions": (_TOOLS, ([],)),
    "function_call": (_TOOLS, ("none", "auto")),
    "response_format": ("answers in a given format are not offered", ({"type": "text"},)),
    "modalities": (_TEXT_ONLY, (["text"],)),
    "audio": (_TEXT_ONLY, ()),
    "prediction": ("predicted outputs are not offered; prompt_lookup_num_tokens of generate_kwargs is like them", ()),
    "reasoning_effort": ("Phi-3 does not reason apart from its answer", ("none",)),
    "verbosity": ("the model has no such setting; ask for brevity in the system prompt", ("medium",)),
    "web_search_options": (_PLATFORM, ()),
    "store": (_PLATFORM, (False,)),
    "service_tier": (_PLATFORM, ("auto", "default")),
    "moderation": (_PLATFORM, ()),
    "suffix": ("Phi-3 continues a text and does not fill gaps", ("",)),
    "best_of": ("the best of several answers is not picked; n returns all of them", (1,)),
}
# What the caller keeps for its own records; it changes no answer, at OpenAI neither.
RECORDS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_retention",
    "prompt_cache_options",
)


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    include_usage: bool | None = None
    """Send one more chunk before the end, with the usage of the whole request and no choices."""
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers is not offered."""


class Body(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False, extra="ignore")

    model: str
    """The model that answers, as `/v1/models` lists it; other spellings of a catalogue name will do."""
    max_tokens: Annotated[int, Ge(1), number("max_tokens")] | None = None
    """Most tokens of the answer; by default 16 for completions, and what the context holds for chat."""
    temperature: Annotated[float, Ge(0), Le(2), number("temperature")] | None = None
    """Above 1 more varied, below 1 more certain, 0 always the likeliest token; by default 1."""
    top_p: Annotated[float, Ge(0), Le(1), number("top_p")] | None = None
    """Sample among the likeliest tokens whose probabilities reach this sum; by default 1."""
    n: Annotated[int, Ge(1), Le(MAX_SEQUENCES), number("n")] | None = None
    """Answers to one prompt; by default 1."""
    stop: StopString | Annotated[list[StopString], Len(0, 16)] | None = None
    """The answer ends before the first of these strings."""
    seed: Annotated[int, Ge(-(2**63)), Le(2**63 - 1), number("seed")] | None = None
    """Makes sampling repeatable; answer number i of n is drawn with seed + i."""
    presence_penalty: Annotated[float, Ge(-2), Le(2), number("presence_penalty")] | None = None
    """Taken from the score of each token that is in the answer already; by default 0."""
    frequency_penalty: Annotated[float, Ge(-2), Le(2), number("frequency_penalty")] | None = None
    """Taken from a token's score for each time it is in the answer already; by default 0."""
    logit_bias: Annotated[dict[str, Annotated[float, Ge(-100), Le(100)]], Len(0, 1024)] | None = None
    """Token ids, as strings, and what is added to their scores."""
    stream: bool | None = None
    """Stream the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """How; only with stream."""
    generate_kwargs: GenerateKwargs | None = None
    """Any generate parameter of `/chat` by name (`extra_body` in the SDK); it wins over the fields above."""
    prompt_cache_key: str | None = None
    """Requests with the same key go to the same replica, where the config says `routing: prefix`."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, value in given.items():
                if value is not None and str(name) not in cls.model_fields:
                    _refuse(str(name), value, list(cls.model_fields))
        return given

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list, whatever form they came in."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def most_tokens(self) -> int | None:
        """Most tokens of the answer, where the caller or the endpoint limits them."""
        return self.max_tokens

    def top_logprobs_wanted(self) -> int | None:
        """How many alternatives to give beside each token's log-probability; None for neither."""
        raise NotImplementedError


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["text"]
    """Pictures and sound are not offered."""
    text: Characters
    """The text; pieces are joined without a separator."""


class ChatCompletionMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks; developer is OpenAI's newer word for system."""
    content: Characters | list[TextPart]
    """What is said; text that spells a control token stays text."""
    name: None = None
    """Names of participants are not offered."""
    refusal: None = None
    """Always null."""
    audio: None = None
    """Always null."""
    annotations: Annotated[list[Any], Len(0, 0)] | None = None
    """Always empty."""
    tool_calls: Annotated[list[Any], Len(0, 0)] | None = None
    """Always empty."""
    function_call: None = None
    """Always null."""

    def as_core(self) -> core.Message:
        """The turn as the template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return core.Message("system" if self.role == "developer" else self.role, text)


class ChatCompletionRequest(Body):
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

    messages: Annotated[list[ChatCompletionMessage], Len(1, 1024)]
    """The conversation: at most one system message at the start, then user and assistant in turn, the user last."""
    max_completion_tokens: Annotated[int, Ge(1), number("max_completion_tokens")] | None = None
    """Most tokens of the answer; the newer name of max_tokens, over which it wins."""
    logprobs: bool | None = None
    """Give the log-probability of each token, under the model's own scores; in a stream all of them come
    with the finish_reason."""
    top_logprobs: Annotated[int, Ge(0), Le(MAX_TOP_LOGPROBS), number("top_logprobs")] | None = None
    """Give so many of the likeliest tokens at each place; needs logprobs."""

    def most_tokens(self) -> int | None:
        """Most tokens of the answer, where the caller limits them."""
        return self.max_completion_tokens or self.max_tokens

    def top_logprobs_wanted(self) -> int | None:
        """Alternatives beside each token's log-probability; None for neither.

        Raises:
            InvalidRequest: top_logprobs without logprobs.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Body):
    """A text, and how to continue it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "phi-3-tiny", "prompt": "<|user|> What is 2+2?<|end|><|assistant|>", "temperature": 0}
            ]
        }
    )

    prompt: (
        Characters
        | Annotated[list[Characters], Len(1, MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Len(1, MAX_PROMPTS)]
    )
    """The text to continue, or its token ids, or several of either; used as it is: control tokens that it spells are
    control tokens."""
    echo: bool | None = None
    """Put the prompt before the answer."""
    logprobs: Annotated[int, Ge(0), Le(5), number("logprobs")] | None = None
    """Give the log-probability of each token and of so many of the likeliest; not with echo. In a stream
    all of them come with the finish_reason."""

    @property
    def prompts(self) -> list[RawPrompt | TokenPrompt]:
        """The prompts as a list.

        Raises:
            InvalidRequest: one of them is empty.
        """
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        several: Sequence[Any] = [self.prompt] if is_one else self.prompt
        for number_, prompt in enumerate(several, 1):
            if not prompt:
                raise InvalidRequest(f"Prompt {number_} is empty; there is nothing to continue.", "prompt")
        return [RawPrompt(p) if isinstance(p, str) else TokenPrompt(tuple(p)) for p in several]

    def echoed(self) -> list[str]:
        """What stands before each answer.

        Raises:
            InvalidRequest: echo of token ids.
        """
        if not self.echo:
            return []
        texts = [prompt.text for prompt in self.prompts if isinstance(prompt, RawPrompt)]
        if len(texts) < len(self.prompts):
            raise InvalidRequest("`echo` is not offered for a prompt of token ids.", "echo")
        return [text for text in texts for _ in range(self.n or 1)]

    def most_tokens(self) -> int | None:
        """Most tokens of the answer: OpenAI's 16, where the caller says nothing."""
        return self.max_tokens or _COMPLETION_TOKENS

    def top_logprobs_wanted(self) -> int | None:
        """Alternatives beside each token's log-probability; None for neither.

        Raises:
            InvalidRequest: logprobs with echo.
        """
        if self.logprobs is not None and self.echo:
            raise InvalidRequest("`logprobs` is not offered with `echo`: prompts are not scored.", "logprobs")
        return self.logprobs


def chat_requests(
    body: ChatCompletionRequest, *, model: str, request_id: str, options: core.RequestOptions
) -> list[GenerationRequest]:
    """What the body asks of a replica, one request for each answer that goes its own way."""
    prompt = render([message.as_core() for message in body.messages])
    return _requests(body, [prompt], model=model, request_id=request_id, options=options)


def completion_requests(
    body: CompletionRequest, *, model: str, request_id: str, options: core.RequestOptions
) -> list[GenerationRequest]:
    """What the body asks of a replica, prompt by prompt."""
    return _requests(body, body.prompts, model=model, request_id=request_id, options=options)


def parameters_of(body: Body) -> GenerationParameters:
    """generate_kwargs over the body's fields.

    Raises:
        InvalidRequest: a field says the same as a parameter of generate_kwargs, or needs another field.
    """
    given = body.generate_kwargs or GenerationParameters()
    if given.num_return_sequences is not None:
        raise InvalidRequest("`num_return_sequences` is called `n` here; send that.", "num_return_sequences")
    for field, name in (("stop", "stop_strings"), ("logit_bias", "sequence_bias")):
        if getattr(body, field) is not None and getattr(given, name) is not None:
            raise InvalidRequest(f"`{field}` and `{name}` of generate_kwargs say the same; send one of them.", field)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("`stream_options` needs `stream` to be true.", "stream_options")
    top_logprobs = body.top_logprobs_wanted()
    temperature = body.temperature if given.temperature is None else given.temperature
    if temperature == 0:  # transformers calls that do_sample false, and refuses the number
        given = replace(given, temperature=None)
    is_search = temperature == 0 or (given.num_beams or 1) > 1
    limited = given.max_new_tokens is None and given.max_length is None
    own = GenerationParameters(
        max_new_tokens=body.most_tokens() if limited else None,
        temperature=body.temperature or None,
        do_sample=False if is_search else None,
        top_p=body.top_p,
        seed=None if body.seed is None else body.seed % 2**63,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        sequence_bias=_sequence_bias(body.logit_bias or {}) or None,
        stop_strings=body.stops or None,
        top_logprobs=top_logprobs,
    )
    return given.over(own)


def _requests(
    body: Body, prompts: Sequence[core.Prompt], *, model: str, request_id: str, options: core.RequestOptions
) -> list[GenerationRequest]:
    parameters = parameters_of(body)
    answers = _answers(parameters, body.n or 1)
    return [
        GenerationRequest(
            request_id=f"{request_id}-{number}",
            model=model,
            prompt=prompt,
            parameters=of_answer,
            api_defaults=_SAMPLED,
            stream=bool(body.stream),
            options=options,
        )
        for number, (prompt, of_answer) in enumerate((p, a) for p in prompts for a in answers)
    ]


def _answers(parameters: GenerationParameters, n: int) -> list[GenerationParameters]:
    """Beams give their n best together; drawn answers are requests of their own, so that each can be streamed."""
    if (parameters.num_beams or 1) > 1:
        return [parameters.over(GenerationParameters(num_return_sequences=n))]
    seed = parameters.seed
    seeds = [GenerationParameters(seed=None if seed is None else (seed + i) % 2**63) for i in range(n)]
    return [of_answer.over(parameters) for of_answer in seeds]


def _sequence_bias(logit_bias: Mapping[str, float]) -> list[tuple[list[int], float]]:
    found = []
    for token, bias in logit_bias.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise InvalidRequest(
                f'`logit_bias` names {token[:32]!r}; its keys are token ids, such as "306".', "logit_bias"
            )
        found.append(([int(token)], bias))
    return found


def _refuse(name: str, value: object, fields: list[str]) -> None:
    """InvalidRequest for a field that is not honoured."""
    if name in RECORDS:
        return
    if name in REFUSED:
        reason, without_effect = REFUSED[name]
        if not any(value == v and type(value) is type(v) for v in without_effect):
            raise InvalidRequest(f"`{name}` is not accepted: {reason}.", name)
        return
    if name in NAMES:
        raise InvalidRequest(f"`{name[:64]}` is a generate parameter: put it into `generate_kwargs`.", name)
    raise InvalidRequest(f"`{name[:64]}` is not a field{did_you_mean(name, [*fields, *REFUSED])}", name[:64])
