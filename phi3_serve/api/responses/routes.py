"""OpenAI's ``/v1/responses`` and ``/v1/responses/input_tokens``. Nothing is stored, so nothing can be retrieved."""

import uuid

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from phi3_serve.api import sse
from phi3_serve.api.error_mapping import STATUS, documented
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.api.responses.answers import ResponseWriter
from phi3_serve.api.responses.requests import conversation, generation_request
from phi3_serve.api.responses.schema import (
    ResponseInputTokens,
    ResponseInputTokensRequest,
    ResponsesRequest,
    ResponsesResponse,
)
from phi3_serve.api.responses.settings import settings_of
from phi3_serve.api.responses.stream import ResponseStream
from phi3_serve.api.sent_names import with_names_sent
from phi3_serve.api.service import Service, cancel_on_disconnect, final_event

_ERRORS = documented(STATUS, OPENAI.validation_status)


def responses_router(service: Service) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(prefix="/v1/responses")

    @router.post("", response_model=ResponsesResponse, responses={200: sse.DOCUMENTED, **_ERRORS})
    async def responses(http: Request, body: ResponsesRequest) -> Response:
        """Answer a question or a conversation, as OpenAI's newer API does. Nothing is stored."""
        model, request_id = service.model_named(body.model), uuid.uuid4().hex
        options = service.options(http, stream=bool(body.stream), session=body.prompt_cache_key)
        offer = body.offered()
        request = generation_request(body, offer, model=model, request_id=request_id, options=options)
        settings = settings_of(body, request)
        writer = ResponseWriter(id=f"resp_{request_id}", model=model.name, settings=settings, calls=request.tool_calls)
        events = with_names_sent(service.events(http, request), body.names_sent)
        if body.stream:
            stream = ResponseStream(writer)
            return await cancel_on_disconnect(http, sse.respond(stream.events(events), stream.failed))

        async def plain() -> Response:
            return JSONResponse(writer.whole(await final_event(events)))

        return await cancel_on_disconnect(http, plain())

    @router.post("/input_tokens", responses=_ERRORS)
    async def input_tokens(http: Request, body: ResponseInputTokensRequest) -> ResponseInputTokens:
        """Count the tokens of a question or a conversation."""
        found = await service.tokenize(http, body.model, conversation(body, body.offered()), prompt_field="input")
        return ResponseInputTokens(input_tokens=len(found.token_ids))

    @router.api_route("/{response_id:path}", methods=["GET", "DELETE", "POST"], include_in_schema=False)
    async def stored(response_id: str) -> Response:
        """Say why an answer cannot be found again."""
        raise HTTPException(404, f"Response {response_id[:64]} is not found: this server stores no answers.")

    return router
