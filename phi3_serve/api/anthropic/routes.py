"""Anthropic's endpoints: ``/v1/messages`` and ``/v1/messages/count_tokens``."""

import uuid

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from phi3_serve.api import sse, streams
from phi3_serve.api.anthropic.answers import MessageWriter
from phi3_serve.api.anthropic.errors import ANTHROPIC
from phi3_serve.api.anthropic.requests import conversation, generation_request
from phi3_serve.api.anthropic.schema import (
    CountTokensRequest,
    CountTokensResponse,
    MessagesRequest,
    MessagesResponse,
)
from phi3_serve.api.anthropic.stream import FORM, MessageStream, error_event
from phi3_serve.api.error_mapping import STATUS, documented
from phi3_serve.api.sent_names import with_names_sent
from phi3_serve.api.service import Service, cancel_on_disconnect, final_event

_ERRORS = documented(STATUS, ANTHROPIC.validation_status)


def anthropic_router(service: Service) -> APIRouter:
    """Anthropic's routes over ``service``."""
    router = APIRouter(prefix="/v1/messages")

    @router.post("", response_model=MessagesResponse, responses={200: sse.DOCUMENTED, **_ERRORS})
    async def messages(http: Request, body: MessagesRequest) -> Response:
        """Answer a conversation, as Anthropic's API does."""
        model, request_id = service.model_named(body.model), uuid.uuid4().hex
        options = service.options(http, stream=bool(body.stream))
        request = generation_request(body, body.offered(), model=model, request_id=request_id, options=options)
        writer = MessageWriter(id=f"msg_{request_id}", model=model.name, calls=request.tool_calls)
        events = with_names_sent(service.events(http, request), body.names_sent)
        if body.stream:
            of_stream = MessageStream(writer).events(events)
            return await cancel_on_disconnect(http, streams.respond(of_stream, error_event, FORM))

        async def plain() -> Response:
            return JSONResponse(writer.whole(await final_event(events)))

        return await cancel_on_disconnect(http, plain())

    @router.post("/count_tokens", responses=_ERRORS)
    async def count_tokens(http: Request, body: CountTokensRequest) -> CountTokensResponse:
        """Count the tokens of a conversation, as Anthropic's API does."""
        found = await service.tokenize(http, body.model, conversation(body, body.offered()), prompt_field="messages")
        return CountTokensResponse(input_tokens=len(found.token_ids))

    return router
