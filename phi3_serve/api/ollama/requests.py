"""ollama's request bodies as ``GenerationRequest``."""

from phi3_serve.api.decoding_mode import with_decoding_mode
from phi3_serve.api.ollama.schema import OllamaBody, OllamaChatRequest, OllamaGenerateRequest
from phi3_serve.api.one_answer import refuse_more_than_one_text
from phi3_serve.api.parameter_names import WHOLE_CONTEXT
from phi3_serve.core import Conversation, GenerationRequest, Message, Prompt, RawPrompt, RequestOptions
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


def without_tag(name: str) -> str:
    """The name of a model without ollama's ``:latest``. Another tag belongs to the name: ``phi3:mini-4k``."""
    return name.removesuffix(":latest").replace(":", "-")


def prompt_of(body: OllamaChatRequest | OllamaGenerateRequest) -> Prompt | None:
    """What is answered; None if the request only starts the model.

    Raises:
        InvalidRequest: raw and system exclude each other, or the model shall be unloaded.
    """
    if isinstance(body, OllamaChatRequest):
        messages = [Message(m.role, m.content or "", reasoning_content=m.thinking) for m in body.messages or ()]
        prompt: Prompt | None = Conversation(tuple(messages)) if messages else None
    else:
        prompt = _question(body)
    if prompt is None and body.keep_alive in (0, "0", "0s"):
        raise InvalidRequest(
            "`keep_alive` 0 cannot unload a model here: the config of the server decides when a model sleeps.",
            "keep_alive",
        )
    return prompt


def generation_request(
    body: OllamaBody, prompt: Prompt, *, model: str, request_id: str, options: RequestOptions
) -> GenerationRequest:
    """The request that the body describes.

    Raises:
        InvalidRequest: the parameters ask for more than one text.
    """
    refuse_more_than_one_text(body.parameters, body.names_sent)
    return GenerationRequest(
        request_id=request_id,
        model=model,
        prompt=prompt,
        parameters=with_decoding_mode(body.parameters),
        api_defaults=DEFAULTS,
        stream=body.streams,
        options=options,
    )


def _question(body: OllamaGenerateRequest) -> Prompt | None:
    if body.raw and body.system:
        raise InvalidRequest("`raw` and `system` exclude each other: a raw prompt has no messages.", "system")
    if not body.prompt:
        return None
    if body.raw:
        return RawPrompt(body.prompt)
    question = Message("user", body.prompt)
    return Conversation((Message("system", body.system), question) if body.system else (question,))
