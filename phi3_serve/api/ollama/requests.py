"""ollama's request bodies as ``GenerationRequest``."""

from collections.abc import Sequence

from phi3_serve.api.adapters import NamedModel
from phi3_serve.api.decoding_mode import with_decoding_mode
from phi3_serve.api.ollama.schema import OllamaBody, OllamaChatRequest, OllamaGenerateRequest, OllamaMessage
from phi3_serve.api.one_answer import refuse_more_than_one_text
from phi3_serve.api.other_names import WHOLE_CONTEXT
from phi3_serve.api.service import Service
from phi3_serve.api.tools.offer import Offer
from phi3_serve.api.tools.prompt import with_offer
from phi3_serve.api.tools.turns import Turns
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters

# ollama at fb307609, api/types.go, DefaultOptions. Without num_ctx the context is that of the model.
DEFAULTS = GenerationParameters(
    do_sample=True,
    temperature=0.8,
    top_k=40,
    top_p=0.9,
    repetition_penalty=1.1,
    repeat_last_n=64,
    max_length=WHOLE_CONTEXT,
)


def named_model(service: Service, name: str) -> NamedModel:
    """What ``name`` means without ollama's ``:latest``.

    Another tag belongs to the name, ``phi3:mini-4k``, or is the name of an adapter.

    Raises:
        UnknownModel: no served model has this name.
    """
    return service.model_named(name.removesuffix(":latest"), lambda tagged: tagged.replace(":", "-"))


def prompt_of(body: OllamaChatRequest | OllamaGenerateRequest, offer: Offer | None) -> Prompt | None:
    """What is answered, with the tools of ``offer``; None if the request only starts the model.

    Raises:
        InvalidRequest: raw and system exclude each other, the model shall be unloaded, or a result belongs to no call.
    """
    if isinstance(body, OllamaChatRequest):
        prompt: Prompt | None = _conversation(body.messages, offer) if body.messages else None
    else:
        prompt = _question(body)
    if prompt is None and body.keep_alive in (0, "0", "0s"):
        raise InvalidRequest(
            "`keep_alive` 0 cannot unload a model here: the config of the server decides when a model sleeps.",
            "keep_alive",
        )
    return prompt


def generation_request(
    body: OllamaBody,
    prompt: Prompt,
    offer: Offer | None,
    *,
    model: NamedModel,
    request_id: str,
    options: RequestOptions,
) -> GenerationRequest:
    """The request that the body describes. ``offer``: the tools that it offers.

    Raises:
        InvalidRequest: the parameters ask for more than one text, or fields contradict each other.
    """
    refuse_more_than_one_text(body.parameters, body.names_sent)
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
    scores = GenerationParameters(top_logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    return GenerationRequest(
        request_id=request_id,
        model=model.model,
        adapters=model.adapters(body.adapters),
        prompt=prompt,
        parameters=with_decoding_mode(body.parameters.over(scores)),
        api_defaults=DEFAULTS,
        tool_calls=None if offer is None else offer.calls,
        stream=body.streams,
        shows_tokens=bool(body.logprobs),
        options=options,
    )


def _conversation(messages: Sequence[OllamaMessage], offer: Offer | None) -> Conversation:
    turns = Turns()
    for number, message in enumerate(messages):
        at = f"messages.{number}"
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest(
                f"`{at}.tool_calls` is in a turn of the {message.role}; only an assistant has called tools.",
                f"{at}.tool_calls",
            )
        if message.role == "tool":
            name = message.tool_name or message.name or turns.unanswered
            turns.result(message.tool_call_id, message.content or "", at=f"{at}.tool_name", name=name)
            continue
        turns.say(message.role, message.content or "", reasoning_content=message.thinking)
        for n, call in enumerate(message.tool_calls or ()):
            called, place = call.function, f"{at}.tool_calls.{n}.function.arguments"
            turns.call(call.id, called.name, called.arguments, at=place)
    return with_offer(turns.messages, offer)


def _question(body: OllamaGenerateRequest) -> Prompt | None:
    if body.raw and body.system:
        raise InvalidRequest("`raw` and `system` exclude each other: a raw prompt has no messages.", "system")
    if not body.prompt:
        return None
    if body.raw:
        return RawPrompt(body.prompt)
    question = Message("user", body.prompt)
    return Conversation((Message("system", body.system), question) if body.system else (question,))
