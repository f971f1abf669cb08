"""OpenAI's ``/v1/files`` and ``/v1/batches``."""

import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from phi3_serve.api.batches.answers import batch_object, file_object
from phi3_serve.api.batches.schema import (
    COMPLETION_WINDOW_S,
    FILE_FORM,
    PURPOSE,
    Batch,
    BatchList,
    CreateBatchRequest,
    FileDeleted,
    FileList,
    FileObject,
    Order,
)
from phi3_serve.api.batches.service import BatchService, readable_errors
from phi3_serve.api.batches.upload import expiry_of, read_form
from phi3_serve.api.error_mapping import documented
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.batch.batch_store import BatchRequest, BatchStore
from phi3_serve.batch.directory import OwnStores
from phi3_serve.batch.file_store import FileStore, StoredFile
from phi3_serve.batch.object_id import BATCH_ID, FILE_ID, IdKind, Page, page
from phi3_serve.errors import (
    BodyTooLarge,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestTimeout,
    StorageUnavailable,
    Unauthorized,
    UnsupportedBody,
)

T = TypeVar("T")

Responses = dict[int | str, dict[str, Any]]  # as FastAPI documents them

_READ: Responses = {
    **documented([InvalidRequest, Unauthorized, NotFound, StorageUnavailable], OPENAI.validation_status),
    404: {"description": "The file or batch is not there, or `batches.directory` is not set"},
    503: {"description": "The directory of files and batches cannot be used"},
}
_OF_A_BODY = [PermissionDenied, RequestTimeout, BodyTooLarge, UnsupportedBody, Overloaded]
_WRITE: Responses = dict(sorted({**_READ, **documented(_OF_A_BODY)}.items(), key=lambda each: int(each[0])))
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CONTENT: Responses = {**_READ, 200: {"description": "The content", "content": _BYTES}}
_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FILE_FORM}}}}

After = Annotated[str | None, Query(description="The id behind which the list goes on")]
NumFiles = Annotated[int, Query(ge=1, le=10_000, description="How many files at most")]
NumBatches = Annotated[int, Query(ge=1, le=100, description="How many batches at most")]
FileOrder = Annotated[Order, Query(description="By the time at which the files were made")]
Purpose = Annotated[str | None, Query(description="Only files with this purpose")]


def batches_router(service: BatchService) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(prefix="/v1")

    async def in_thread(http: Request, work: Callable[[OwnStores], T]) -> T:
        """What ``work`` does with the files of the client."""
        stores = service.stores_of(http)
        with readable_errors():
            return await service.in_thread(work, stores)

    @router.post("/files", responses=_WRITE, openapi_extra=_FORM)
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

    @router.get("/files", responses=_READ)
    async def files(
        http: Request,
        after: After = None,
        limit: NumFiles = 10_000,
        order: FileOrder = "desc",
        purpose: Purpose = None,
    ) -> FileList:
        """List the files of the API key, the newest first."""
        _check_cursor(FILE_ID, after)

        def work(stores: OwnStores) -> FileList:
            found = [file for id in stores.files.ids() if (file := stores.files.get(id)) is not None]
            by_id = {file.id: file for file in found if purpose in (None, file.purpose)}
            shown = page(list(by_id), after=after, limit=limit, newest_first=order == "desc")
            return FileList(data=[file_object(by_id[id]) for id in shown.ids], **_ends(shown))

        return await in_thread(http, work)

    @router.get("/files/{file_id}", responses=_READ)
    async def one_file(http: Request, file_id: str) -> FileObject:
        """Describe a file."""
        return file_object(await in_thread(http, lambda stores: _file_of(stores.files, file_id)))

    @router.delete("/files/{file_id}", responses=_READ)
    async def delete(http: Request, file_id: str) -> FileDeleted:
        """Delete a file that no unfinished batch reads."""

        def work(stores: OwnStores) -> FileDeleted:
            _file_of(stores.files, file_id)
            if (reader := stores.batches.uses(file_id)) is not None:
                raise InvalidRequest(f"The batch {reader} reads this file. Wait for its end, or cancel it.", "file_id")
            stores.files.delete(file_id)
            return FileDeleted(id=file_id)

        return await in_thread(http, work)

    @router.get("/files/{file_id}/content", response_class=FileResponse, responses=_CONTENT)
    async def content(http: Request, file_id: str) -> FileResponse:
        """Send the content of a file."""

        def work(stores: OwnStores) -> FileResponse:
            file, path = _file_of(stores.files, file_id), stores.files.content(file_id)
            try:
                size = path.stat()
            except FileNotFoundError:  # deleted a moment ago
                raise _no_file(file_id) from None
            return FileResponse(path, media_type="application/octet-stream", filename=file.filename, stat_result=size)

        return await in_thread(http, work)

    @router.post("/batches", responses=_WRITE)
    async def create(http: Request, body: CreateBatchRequest) -> Batch:
        """Answer all requests of a file, while the server has time for them."""

        def work(stores: OwnStores) -> Batch:
            service.check_room()
            if _file_of(stores.files, body.input_file_id, "input_file_id").purpose != PURPOSE:
                raise InvalidRequest(f'The purpose of the file must be "{PURPOSE}".', "input_file_id")
            request = _batch_request(body)
            stores.batches.create(request)
            return _batch_of(stores.batches, request.id)

        return await in_thread(http, work)

    @router.get("/batches", responses=_READ)
    async def batches(http: Request, after: After = None, limit: NumBatches = 20) -> BatchList:
        """List the batches of the API key, the newest first."""
        _check_cursor(BATCH_ID, after)

        def work(stores: OwnStores) -> BatchList:
            shown = page(stores.batches.ids(), after=after, limit=limit)
            found = [batch for id in shown.ids if (batch := _find_batch(stores.batches, id)) is not None]
            return BatchList(data=found, **_ends(shown))

        return await in_thread(http, work)

    @router.get("/batches/{batch_id}", responses=_READ)
    async def one_batch(http: Request, batch_id: str) -> Batch:
        """Show how far a batch is."""
        return await in_thread(http, lambda stores: _batch_of(stores.batches, batch_id))

    @router.post("/batches/{batch_id}/cancel", responses=_WRITE)
    async def cancel(http: Request, batch_id: str) -> Batch:
        """End a batch. The answers that it has become its files."""

        def work(stores: OwnStores) -> Batch:
            _batch_of(stores.batches, batch_id)
            progress = stores.batches.progress(batch_id)
            if progress.has_ended:
                raise InvalidRequest(f"A batch with the status {progress.status} cannot be cancelled.", "batch_id")
            stores.batches.cancel(batch_id, int(time.time()))
            return _batch_of(stores.batches, batch_id)

        return await in_thread(http, work)

    return router


def _file_of(files: FileStore, id: str, param: str = "file_id") -> StoredFile:
    """The file ``id``; ``param`` is the field that names it.

    Raises:
        NotFound: it is not there.
    """
    if (file := files.get(id)) is None:
        raise _no_file(id, param)
    return file


def _no_file(id: str, param: str = "file_id") -> NotFound:
    return NotFound(f"There is no file {id[:64]!r}. It was never made with this API key, or was deleted.", param)


def _batch_of(batches: BatchStore, id: str) -> Batch:
    """How far the batch ``id`` is.

    Raises:
        NotFound: it is not there.
    """
    if (batch := _find_batch(batches, id)) is None:
        raise NotFound(
            f"There is no batch {id[:64]!r}. It was never made with this API key, or is too old.", "batch_id"
        )
    return batch


def _find_batch(batches: BatchStore, id: str) -> Batch | None:
    request = batches.request(id)
    return None if request is None else batch_object(request, batches.progress(id), batches.cancelled_at(id))


def _batch_request(body: CreateBatchRequest) -> BatchRequest:
    now = int(time.time())
    expiry = body.output_expires_after
    return BatchRequest(
        id=BATCH_ID.new(),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        created_at=now,
        expires_at=now + COMPLETION_WINDOW_S,
        metadata=body.metadata,
        output_expires_after_s=None if expiry is None else expiry.seconds,
    )


def _check_cursor(kind: IdKind, after: str | None) -> None:
    if after is not None and not kind.matches(after):
        raise InvalidRequest(f"`after` must be an id of this list, which begins with {kind.prefix}.", "after")


def _ends(shown: Page) -> dict[str, Any]:
    """The fields of a part of a list beside its objects."""
    first, last = (shown.ids[0], shown.ids[-1]) if shown.ids else (None, None)
    return {"first_id": first, "last_id": last, "has_more": shown.has_more}
