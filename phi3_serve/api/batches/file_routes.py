"""OpenAI's ``/v1/files``."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from phi3_serve.api.batches.answers import file_object
from phi3_serve.api.batches.listing import After, check_cursor, ends
from phi3_serve.api.batches.responses import READ, WRITE, Responses
from phi3_serve.api.batches.schema import FILE_FORM, PURPOSE, FileDeleted, FileList, FileObject, Order
from phi3_serve.api.batches.service import BatchService, readable_errors
from phi3_serve.api.batches.stored_file import file_of, no_file
from phi3_serve.api.batches.upload import expiry_of, read_form
from phi3_serve.batch.directory import OwnStores
from phi3_serve.batch.file_store import StoredFile
from phi3_serve.batch.object_id import FILE_ID, page
from phi3_serve.errors import InvalidRequest

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CONTENT: Responses = {**READ, 200: {"description": "The content", "content": _BYTES}}
_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FILE_FORM}}}}

NumFiles = Annotated[int, Query(ge=1, le=10_000, description="How many files at most")]
FileOrder = Annotated[Order, Query(description="By the time at which the files were made")]
Purpose = Annotated[str | None, Query(description="Only files with this purpose")]


def files_router(service: BatchService) -> APIRouter:
    """The routes of files over ``service``."""
    router = APIRouter(prefix="/v1")

    @router.post("/files", responses=WRITE, openapi_extra=_FORM)
    async def upload(http: Request) -> FileObject:
        """Keep a file of requests for a batch."""
        files = service.stores_of(http).files
        with readable_errors():
            room = await service.in_thread(service.room_for_file)
            async with service.new_file(files) as file:
                form = await read_form(http, file, room, service.in_thread)
                how: Any = {
                    "filename": form.filename,
                    "purpose": PURPOSE,
                    "expires_after_s": expiry_of(form.fields) or service.keep_s,
                }

                def keep() -> StoredFile:
                    room.require_space()
                    return files.keep(file, **how)

                return file_object(await service.in_thread(keep))

    @router.get("/files", responses=READ)
    async def files(
        http: Request,
        after: After = None,
        limit: NumFiles = 10_000,
        order: FileOrder = "desc",
        purpose: Purpose = None,
    ) -> FileList:
        """List the files of the API key, the newest first."""
        check_cursor(FILE_ID, after)

        def work(stores: OwnStores) -> FileList:
            found = [file for id in stores.files.ids() if (file := stores.files.get(id)) is not None]
            by_id = {file.id: file for file in found if purpose in (None, file.purpose)}
            shown = page(list(by_id), after=after, limit=limit, newest_first=order == "desc")
            return FileList(data=[file_object(by_id[id]) for id in shown.ids], **ends(shown))

        return await service.with_stores(http, work)

    @router.get("/files/{file_id}", responses=READ)
    async def one_file(http: Request, file_id: str) -> FileObject:
        """Describe a file."""
        return file_object(await service.with_stores(http, lambda stores: file_of(stores.files, file_id)))

    @router.delete("/files/{file_id}", responses=READ)
    async def delete(http: Request, file_id: str) -> FileDeleted:
        """Delete a file that no unfinished batch reads."""

        def work(stores: OwnStores) -> FileDeleted:
            file_of(stores.files, file_id)
            if (reader := stores.batches.uses(file_id)) is not None:
                raise InvalidRequest(f"The batch {reader} reads this file. Wait for its end, or cancel it.", "file_id")
            stores.files.delete(file_id)
            return FileDeleted(id=file_id)

        return await service.with_stores(http, work)

    @router.get("/files/{file_id}/content", response_class=FileResponse, responses=_CONTENT)
    async def content(http: Request, file_id: str) -> FileResponse:
        """Send the content of a file."""

        def work(stores: OwnStores) -> FileResponse:
            file, path = file_of(stores.files, file_id), stores.files.content(file_id)
            try:
                size = path.stat()
            except FileNotFoundError:  # deleted a moment ago
                raise no_file(file_id) from None
            return FileResponse(path, media_type="application/octet-stream", filename=file.filename, stat_result=size)

        return await service.with_stores(http, work)

    return router
