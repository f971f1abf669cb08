"""Bodies of ``/v1/responses`` as ``GenerationRequest``."""

from phi3_serve.api.adapters import NamedModel
from phi3_serve.api.decoding_mode import SAMPLED, with_decoding_mode
from phi3_serve.api.one_answer import refuse_more_than_one_text
from phi3_serve.api.responses.schema import (
    LOGPROBS,
    InputMessage,
    ReasoningItem,
    ResponseInputTokensRequest,
    ResponsesRequest,
)
from phi3_serve.api.responses.tools import FunctionCallItem, FunctionCallOutputItem
from phi3_serve.api.tools.offer import Offer
from phi3_serve.api.tools.prompt import with_offer
from phi3_serve.api.tools.turns import Turns
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters


def conversation(body: ResponsesRequest | ResponseInputTokensRequest, offer: Offer | None) -> Conversation:
    """The instructions and the input, with the tools of ``offer``.

    Raises:
        InvalidRequest: a result belongs to no call.
    """
    turns = Turns()
    if body.instructions:
        turns.say("system", body.instructions)
    if isinstance(body.input, str):
        turns.say("user", body.input)
    else:
        for number, item in enumerate(body.input):
            _add(item, turns, f"input.{number}")
    return with_offer(turns.messages, offer)


def generation_request(
    body: ResponsesRequest, offer: Offer | None, *, model: NamedModel, request_id: str, options: RequestOptions
) -> GenerationRequest:
    """The request that the body describes. ``offer``: the tools that it offers.

    Raises:
        InvalidRequest: fields contradict each other, or ask for more than one text.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("`stream_options` needs `stream` to be true.", "stream_options")
    if body.top_logprobs and not body.wants_logprobs:
        raise InvalidRequest(f"`top_logprobs` needs {LOGPROBS} in `include`.", "top_logprobs")
    refuse_more_than_one_text(body.parameters, body.names_sent, has_logprobs=True)
    of_fields = GenerationParameters(top_logprobs=body.top_logprobs or 0 if body.wants_logprobs else None)
    return GenerationRequest(
        request_id=request_id,
        model=model.model,
        adapters=model.adapters(body.adapters),
        prompt=conversation(body, offer),
        parameters=with_decoding_mode(body.parameters.over(of_fields)),
        api_defaults=SAMPLED,
        tool_calls=None if offer is None else offer.calls,
        stream=bool(body.stream),
        shows_tokens=body.wants_logprobs,
        options=options,
    )


def _add(item: InputMessage | FunctionCallItem | FunctionCallOutputItem | ReasoningItem, turns: Turns, at: str) -> None:
    match item:
        case FunctionCallItem():
            turns.call(item.call_id, item.name, item.arguments, at=f"{at}.arguments")
        case FunctionCallOutputItem():
            turns.result(item.call_id, item.text, at=f"{at}.call_id", name=item.name)
        case InputMessage():
            text = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
            turns.say("system" if item.role == "developer" else item.role, text)
