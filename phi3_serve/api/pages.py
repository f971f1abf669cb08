"""The pages for people: the API reference at ``/docs`` and the chat page at ``/ui``."""

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from phi3_serve.api.reference import as_page, reference
from phi3_serve.web.page import POLICY, chat_page

_YEAR_S = 365 * 24 * 3600


def pages_router() -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs", response_class=HTMLResponse)
    async def docs(request: Request) -> str:
        """Show the API reference."""
        return as_page(reference(request.app.openapi()))

    @router.get("/ui", response_class=HTMLResponse)
    async def ui() -> Response:
        """Show the chat page."""
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return HTMLResponse(chat_page().html, headers=headers)

    @router.get("/ui/{version}/{path:path}")
    async def ui_file(request: Request, version: str, path: str) -> Response:
        """Send what the chat page loads. During an upgrade a page of another version may ask."""
        page = chat_page()
        file = page.files.get(path)
        if file is None:
            raise HTTPException(404, f"The chat page has no file {path[:128]!r}.")
        caching = f"public, max-age={_YEAR_S}, immutable" if version == page.version else "no-store"
        headers = {"Cache-Control": caching, "Vary": "Accept-Encoding"}
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(file.content, media_type=file.media_type, headers=headers)
        return Response(file.compressed, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})

    return router
