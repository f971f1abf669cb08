"""The pages for people: the API reference at ``/docs`` and the chat page at ``/ui``."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from phi3_serve.api.reference import as_page, reference
from phi3_serve.web.page import chat_page


def pages_router() -> APIRouter:
    """The two routes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs", response_class=HTMLResponse)
    async def docs(request: Request) -> str:
        """Show the API reference."""
        return as_page(reference(request.app.openapi()))

    @router.get("/ui", response_class=HTMLResponse)
    async def ui() -> Response:
        """Show the chat page."""
        page = chat_page()
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy, "Cache-Control": "no-cache"})

    return router
