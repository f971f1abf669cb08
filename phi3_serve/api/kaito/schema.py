"""KAITO's ``POST /chat``: its request, its answer, its texts.

Source: kaito at 870a79778, presets/workspace/inference/text-generation/inference_api.py, and the clients that
call it: unknown top-level fields pass, as they did there; unknown generate parameters do not.
"""

import math
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, Field

from phi3_serve import core
from phi3_serve.api.fields import GenerateKwargs, number
from phi3_serve.core import Done, GenerationRequest, RawPrompt
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import CHAT_DEFAULTS, Characters, GenerationParameters
from phi3_serve.text.template import render

PROMPT_REQUIRED = "Text generation parameter prompt required"
MESSAGES_REQUIRED = "Conversational parameter messages required"
ONE_OF_BOTH = "`prompt` and `messages` exclude each other; send one of them."


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: Characters
    """What is said; text that spells a control token stays text."""


class ChatRequest(BaseModel):
    """A prompt or a conversation, and how to answer it."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "prompt": "<|user|> What is the meaning of life?<|end|><|assistant|>",
                    "return_full_text": False,
                    "clean_up_tokenization_spaces": False,
                    "prefix": None,
                    "handle_long_generation": None,
                    "generate_kwargs": {
                        "max_length": 200,
                        "do_sample": True,
                        "temperature": 1.0,
                        "top_k": 10,
                    },
                }
            ]
        },
    )

    prompt: Characters | None = None
    """The text to continue, used as it is: control tokens that it spells are control tokens."""
    messages: list[ChatMessage] | None = None
    """A conversation instead of a prompt; the model's chat template is applied and Result is the reply alone."""
    return_full_text: bool = True
    """Give the prompt and the answer (true) or the answer alone (false)."""
    clean_up_tokenization_spaces: bool = False
    """Remove spaces before punctuation and contractions, as transformers 4.55 did."""
    prefix: Characters | None = None
    """Put before the prompt; not counted by max_length and not part of Result."""
    handle_long_generation: Literal["hole"] | None = None
    """"hole" drops the start of a prompt that leaves no room for the answer."""
    generate_kwargs: GenerateKwargs | None = Field(default_factory=GenerationParameters)
    """Generate parameters by name. What is not given here has KAITO's default: max_length 200, do_sample true,
    top_k 10 and so on; null as a whole means the model's own generation config instead."""
    stream: bool = False
    """Stream the answer as server-sent events."""
    model: str | None = None
    """The model that answers; by default the config's default_model. The path /{model}/chat wins over it."""
    temperature: Annotated[float, Ge(0), number("temperature")] | None = None
    """As in generate_kwargs, which wins."""
    top_p: Annotated[float, Ge(0), Le(1), number("top_p")] | None = None
    """As in generate_kwargs, which wins."""
    top_k: Annotated[int, Ge(0), number("top_k")] | None = None
    """As in generate_kwargs, which wins."""
    repetition_penalty: Annotated[float, Gt(0), number("repetition_penalty")] | None = None
    """As in generate_kwargs, which wins."""
    max_tokens: Annotated[int, Ge(1), number("max_tokens")] | None = None
    """max_new_tokens of generate_kwargs, which wins, as does its max_length."""


class ChatResponse(BaseModel):
    """The answer."""

    Result: str = Field(description="The text of the answer; several sequences are joined without a separator.")
    Results: list[str] | None = Field(None, description="The sequences one by one, where there are several.")
    Details: dict[str, Any] | None = Field(
        None,
        description="Token ids, finish reasons, scores; with return_dict_in_generate, output_scores or top_logprobs.",
    )


class MessageResponse(BaseModel):
    """KAITO's ``GET /``."""

    message: str = Field(default="Server is running", description="Always this.")


class HealthStatus(BaseModel):
    """KAITO's ``GET /health``."""

    status: str = Field(default="Healthy", description="Always this.")


def to_request(body: ChatRequest, *, model: str, request_id: str, options: core.RequestOptions) -> GenerationRequest:
    """What the body asks of a replica.

    Raises:
        InvalidRequest: neither or both of prompt and messages, or turns that do not alternate.
    """
    return GenerationRequest(
        request_id=request_id,
        model=model,
        prompt=_prompt(body),
        parameters=_parameters(body),
        api_defaults=GenerationParameters() if body.generate_kwargs is None else CHAT_DEFAULTS,
        stream=body.stream,
        clean_up_tokenization_spaces=body.clean_up_tokenization_spaces,
        truncate_prompt=body.handle_long_generation == "hole",
        options=options,
    )


def shown_prompt(body: ChatRequest) -> str:
    """What Result begins with before the answer."""
    return body.prompt if body.return_full_text and body.prompt else ""


def from_done(done: Done, body: ChatRequest, request: GenerationRequest) -> dict[str, Any]:
    """The answer's body."""
    texts = [shown_prompt(body) + completion.text for completion in done.completions]
    answer: dict[str, Any] = {"Result": "".join(texts)}
    if len(texts) > 1:
        answer["Results"] = texts
    if _asks_for_details(request.parameters):
        answer["Details"] = {
            "sequences": [_details(completion.sequence) for completion in done.completions],
            "usage": {
                "prompt_tokens": done.usage.prompt_tokens,
                "completion_tokens": done.usage.completion_tokens,
            },
        }
    return answer


def _asks_for_details(parameters: GenerationParameters) -> bool:
    return bool(parameters.return_dict_in_generate or parameters.output_scores or parameters.top_logprobs is not None)


def _details(sequence: core.GeneratedSequence) -> dict[str, Any]:
    details: dict[str, Any] = {"token_ids": sequence.token_ids, "finish_reason": sequence.finish_reason}
    if sequence.scores is not None:
        # JSON has no infinities; a forced token can have been impossible
        details["scores"] = [score if math.isfinite(score) else None for score in sequence.scores]
    if sequence.logprobs is not None:
        details["logprobs"] = [of_token.chosen for of_token in sequence.logprobs]
        details["top_logprobs"] = [of_token.likeliest for of_token in sequence.logprobs]
    return details


def _prompt(body: ChatRequest) -> core.RawPrompt | core.Conversation:
    if body.prompt and body.messages:
        raise InvalidRequest(ONE_OF_BOTH, "messages")
    if body.messages:
        return render([core.Message(m.role, m.content) for m in body.messages])
    if body.messages is not None and not body.prompt:
        raise InvalidRequest(MESSAGES_REQUIRED, "messages")
    if not body.prompt:
        raise InvalidRequest(PROMPT_REQUIRED, "prompt")
    return RawPrompt(body.prompt, body.prefix or "")


def _parameters(body: ChatRequest) -> GenerationParameters:
    """generate_kwargs over the top-level fields."""
    given = body.generate_kwargs or GenerationParameters()
    max_tokens = body.max_tokens if given.max_length is None else None
    top_level = GenerationParameters(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        max_new_tokens=max_tokens,
    )
    return given.over(top_level)
