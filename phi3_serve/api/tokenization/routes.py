"""``/tokenize``, ``/detokenize`` and ``/apply-template``, which use the tokenizer of a model and generate nothing."""

from fastapi import APIRouter, Request

from phi3_serve.api.error_mapping import STATUS, documented
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.api.service import Service
from phi3_serve.api.tokenization.requests import prompt_of, turns_of
from phi3_serve.api.tokenization.schema import (
    ApplyTemplateRequest,
    ApplyTemplateResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from phi3_serve.core.prompt import TokenPrompt
from phi3_serve.core.tokenization import Token

_RESPONSES = documented(STATUS, OPENAI.validation_status)


def tokenization_router(service: Service) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter()

    @router.post("/tokenize", responses=_RESPONSES, response_model_exclude_none=True)
    async def tokenize(http: Request, body: TokenizeRequest) -> TokenizeResponse:
        """Show the token ids of a text or of a conversation, as vLLM and llama.cpp do."""
        name, prompt = prompt_of(body)
        found = await service.tokenize(
            http,
            body.model,
            prompt,
            prompt_field=name,
            finds_control_tokens=body.parse_special,
            with_tokens=body.with_pieces or bool(body.return_token_strs),
        )
        with_pieces = zip(found.token_ids, found.tokens, strict=False) if body.with_pieces else ()
        return TokenizeResponse(
            count=len(found.token_ids),
            max_model_len=found.context_length,
            tokens=[{"id": i, "piece": _piece(token)} for i, token in with_pieces] or list(found.token_ids),
            token_strs=[token.name for token in found.tokens] if body.return_token_strs else None,
        )

    @router.post("/detokenize", responses=_RESPONSES)
    async def detokenize(http: Request, body: DetokenizeRequest) -> DetokenizeResponse:
        """Show the text of token ids. Control tokens have their names."""
        found = await service.tokenize(http, body.model, TokenPrompt(tuple(body.tokens)), prompt_field="tokens")
        return DetokenizeResponse(prompt=found.text, content=found.text)

    @router.post("/apply-template", responses=_RESPONSES)
    async def apply_template(http: Request, body: ApplyTemplateRequest) -> ApplyTemplateResponse:
        """Show a conversation as the checkpoint's chat template writes it, as llama.cpp does."""
        found = await service.tokenize(http, body.model, turns_of(body, body.messages), prompt_field="messages")
        return ApplyTemplateResponse(prompt=found.text)

    return router


def _piece(token: Token) -> str | list[int]:
    """The bytes as text, if they are valid UTF-8 on their own."""
    try:
        return token.content.decode()
    except UnicodeDecodeError:
        return list(token.content)
