"""Anthropic's request bodies as ``GenerationRequest``."""

from phi3_serve.api.anthropic.schema import Content, CountTokensRequest, MessagesRequest
from phi3_serve.api.decoding_mode import SAMPLED, with_decoding_mode
from phi3_serve.api.one_answer import refuse_more_than_one_text
from phi3_serve.core import Conversation, GenerationRequest, Message, RequestOptions
from phi3_serve.parameters import GenerationParameters


def conversation(body: MessagesRequest | CountTokensRequest) -> Conversation:
    """The system prompt and the messages. An answer continues a last message of the assistant."""
    system = [] if body.system is None else [Message("system", _text(body.system))]
    return Conversation(
        (*system, *(Message(m.role, _text(m.content)) for m in body.messages)),
        continue_final_message=body.messages[-1].role == "assistant",
    )


def generation_request(
    body: MessagesRequest, *, model: str, request_id: str, options: RequestOptions
) -> GenerationRequest:
    """The request that the body describes.

    Raises:
        InvalidRequest: the parameters ask for more than one text.
    """
    refuse_more_than_one_text(body.parameters, body.names_sent)
    parameters = body.parameters.over(GenerationParameters(max_new_tokens=body.max_tokens))
    return GenerationRequest(
        request_id=request_id,
        model=model,
        prompt=conversation(body),
        parameters=with_decoding_mode(parameters),
        api_defaults=SAMPLED,
        stream=bool(body.stream),
        shows_usage=True,  # the start of a stream has the number of tokens of the prompt
        options=options,
    )


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
