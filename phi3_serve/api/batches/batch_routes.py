"""OpenAI's ``/v1/batches``."""

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from phi3_serve.api.batches.answers import batch_object
from phi3_serve.api.batches.listing import After, check_cursor, ends
from phi3_serve.api.batches.responses import READ, WRITE
from phi3_serve.api.batches.schema import COMPLETION_WINDOW_S, PURPOSE, Batch, BatchList, CreateBatchRequest
from phi3_serve.api.batches.service import BatchService
from phi3_serve.api.batches.stored_file import file_of
from phi3_serve.batch.batch_store import BatchRequest, BatchStore
from phi3_serve.batch.directory import OwnStores
from phi3_serve.batch.object_id import BATCH_ID, page
from phi3_serve.errors import InvalidRequest, NotFound

NumBatches = Annotated[int, Query(ge=1, le=100, description="How many batches at most")]


def batches_router(service: BatchService) -> APIRouter:
    """The routes of batches over ``service``."""
    router = APIRouter(prefix="/v1")

    @router.post("/batches", responses=WRITE)
    async def create(http: Request, body: CreateBatchRequest) -> Batch:
        """Answer all requests of a file, while the server has time for them."""

        def work(stores: OwnStores) -> Batch:
            service.check_room()
            if file_of(stores.files, body.input_file_id, "input_file_id").purpose != PURPOSE:
                raise InvalidRequest(f'The purpose of the file must be "{PURPOSE}".', "input_file_id")
            request = _batch_request(body)
            stores.batches.create(request)
            return _batch_of(stores.batches, request.id)

        return await service.with_stores(http, work)

    @router.get("/batches", responses=READ)
    async def batches(http: Request, after: After = None, limit: NumBatches = 20) -> BatchList:
        """List the batches of the API key, the newest first."""
        check_cursor(BATCH_ID, after)

        def work(stores: OwnStores) -> BatchList:
            shown = page(stores.batches.ids(), after=after, limit=limit)
            found = [batch for id in shown.ids if (batch := _find_batch(stores.batches, id)) is not None]
            return BatchList(data=found, **ends(shown))

        return await service.with_stores(http, work)

    @router.get("/batches/{batch_id}", responses=READ)
    async def one_batch(http: Request, batch_id: str) -> Batch:
        """Show how far a batch is."""
        return await service.with_stores(http, lambda stores: _batch_of(stores.batches, batch_id))

    @router.post("/batches/{batch_id}/cancel", responses=WRITE)
    async def cancel(http: Request, batch_id: str) -> Batch:
        """End a batch. The answers that it has become its files."""

        def work(stores: OwnStores) -> Batch:
            _batch_of(stores.batches, batch_id)
            progress = stores.batches.progress(batch_id)
            if progress.has_ended:
                raise InvalidRequest(f"A batch with the status {progress.status} cannot be cancelled.", "batch_id")
            stores.batches.cancel(batch_id, int(time.time()))
            return _batch_of(stores.batches, batch_id)

        return await service.with_stores(http, work)

    return router


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
