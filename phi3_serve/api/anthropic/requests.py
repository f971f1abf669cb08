"""Anthropic's request bodies as ``GenerationRequest``."""

from dataclasses import replace

from phi3_serve.api.adapters import NamedModel
from phi3_serve.api.anthropic.schema import (
    Block,
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    TextBlock,
    ToolResultBlock,
    text_of,
)
from phi3_serve.api.anthropic.tools import ToolUseBlock
from phi3_serve.api.decoding_mode import SAMPLED, with_decoding_mode
from phi3_serve.api.one_answer import refuse_more_than_one_text
from phi3_serve.api.tools.offer import Offer
from phi3_serve.api.tools.prompt import with_offer
from phi3_serve.api.tools.turns import Turns
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters


def conversation(body: MessagesRequest | CountTokensRequest, offer: Offer | None) -> Conversation:
    """The system prompt and the messages, with the tools of ``offer``. An answer continues what an assistant has begun.

    Raises:
        InvalidRequest: a result belongs to no call.
    """
    turns = Turns()
    if body.system is not None:
        turns.say("system", text_of(body.system))
    for number, message in enumerate(body.messages):
        _add(message, turns, f"messages.{number}.content")
    last = body.messages[-1]
    has_calls = isinstance(last.content, list) and any(isinstance(block, ToolUseBlock) for block in last.content)
    is_begun = last.role == "assistant" and not has_calls
    return replace(with_offer(turns.messages, offer), continue_final_message=is_begun)


def generation_request(
    body: MessagesRequest, offer: Offer | None, *, model: NamedModel, request_id: str, options: RequestOptions
) -> GenerationRequest:
    """The request that the body describes. ``offer``: the tools that it offers.

    Raises:
        InvalidRequest: the parameters ask for more than one text.
    """
    refuse_more_than_one_text(body.parameters, body.names_sent)
    parameters = body.parameters.over(GenerationParameters(max_new_tokens=body.max_tokens))
    return GenerationRequest(
        request_id=request_id,
        model=model.model,
        adapters=model.adapters(body.adapters),
        prompt=conversation(body, offer),
        parameters=with_decoding_mode(parameters),
        api_defaults=SAMPLED,
        tool_calls=None if offer is None else offer.calls,
        stream=bool(body.stream),
        shows_usage=True,  # the start of a stream has the number of tokens of the prompt
        options=options,
    )


def _add(message: MessageParam, turns: Turns, at: str) -> None:
    """``at``: the field with the content, for errors."""
    if isinstance(message.content, str):
        turns.say(message.role, message.content)
        return
    blocks = [(f"{at}.{number}", block) for number, block in enumerate(message.content)]
    for place, block in blocks:
        _check_author(message.role, block, place)
    results = [(place, block) for place, block in blocks if isinstance(block, ToolResultBlock)]
    for place, result in results:
        turns.result(result.tool_use_id, result.text, at=f"{place}.tool_use_id")
    text = text_of([block for _, block in blocks if isinstance(block, TextBlock)])
    if not results:
        turns.say(message.role, text)
    elif text:
        turns.say_more(text)
    for place, block in blocks:
        if isinstance(block, ToolUseBlock):
            turns.call(block.id, block.name, block.input, at=f"{place}.input")


def _check_author(role: str, block: Block, place: str) -> None:
    author = {"tool_use": "assistant", "tool_result": "user"}.get(block.type, role)
    if role != author:
        raise InvalidRequest(
            f"`{place}` is a {block.type} block in a turn of the {role}; an assistant has called tools, and a user "
            "sends the results.",
            place,
        )
