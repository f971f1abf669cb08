"""What a body of ``/tokenize`` asks for."""

from dataclasses import replace

from phi3_serve.api.chat_messages import ChatCompletionMessage, conversation
from phi3_serve.api.tokenization.schema import ApplyTemplateRequest, TokenizeRequest
from phi3_serve.core.prompt import Conversation, RawPrompt
from phi3_serve.errors import InvalidRequest

_FORMS = ("prompt", "content", "messages")


def prompt_of(body: TokenizeRequest) -> tuple[str, RawPrompt | Conversation]:
    """The field that has the text, and the text.

    Raises:
        InvalidRequest: there is none, or there are several; or both names of one option have different values.
    """
    given = [name for name in _FORMS if getattr(body, name) is not None]
    if not given:
        raise InvalidRequest("Send `prompt`, `content` or `messages`: the text that becomes token ids.", "prompt")
    if len(given) > 1:
        raise InvalidRequest(f"`{given[0]}` and `{given[1]}` exclude each other; send one of them.", given[1])
    adds_special_tokens = _adds_special_tokens(body)
    if body.messages is None:
        return given[0], RawPrompt(getattr(body, given[0]), add_special_tokens=adds_special_tokens)
    return "messages", replace(turns_of(body, body.messages), add_special_tokens=adds_special_tokens)


def turns_of(body: TokenizeRequest | ApplyTemplateRequest, messages: list[ChatCompletionMessage]) -> Conversation:
    """``messages`` with the tools, and how they end.

    Raises:
        InvalidRequest: they would end in two ways.
    """
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidRequest(
            "`continue_final_message` and `add_generation_prompt` cannot both be true.", "continue_final_message"
        )
    return replace(
        conversation(messages, body.offered()),
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
    )


def _adds_special_tokens(body: TokenizeRequest) -> bool:
    """Whether the tokenizer's special tokens are added; vLLM adds them to a prompt by default, llama.cpp does not."""
    vllm, llama_cpp = body.add_special_tokens, body.add_special
    if vllm is not None and llama_cpp is not None and vllm != llama_cpp:
        raise InvalidRequest(
            "`add_special_tokens` and `add_special` set the same parameter to different values; send one of them.",
            "add_special",
        )
    chosen = llama_cpp if vllm is None else vllm
    return body.prompt is not None if chosen is None else chosen
