"""The files and batches of this server: the directory, its limits, and the worker that runs the batches."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import Request
from starlette.types import ASGIApp

from phi3_serve.api.batches.in_process import InProcessClient
from phi3_serve.api.batches.sender import BatchSender
from phi3_serve.api.batches.upload import FORM_BYTES, Room
from phi3_serve.api.keys import ApiKeys, key_of
from phi3_serve.api.service import Service
from phi3_serve.batch.directory import BatchDirectory, OwnStores
from phi3_serve.batch.file_store import FileStore, NewFile
from phi3_serve.batch.own_thread import in_own_thread, on_this_loop
from phi3_serve.batch.validation import InputLimits
from phi3_serve.batch.worker import BatchWorker
from phi3_serve.config.batches import BatchesConfig
from phi3_serve.errors import BodyTooLarge, InvalidRequest, NotFound, StorageUnavailable

DAY_S = 86_400
NUM_THREADS = 8

P = ParamSpec("P")
T = TypeVar("T")


class BatchService:
    """What the routes need of files and batches."""

    def __init__(self, config: BatchesConfig) -> None:
        self.config = config
        self._threads = ThreadPoolExecutor(NUM_THREADS, "phi3-files")  # starts threads when they are needed
        self._directory = None if config.directory is None else BatchDirectory(Path(config.directory).expanduser())

    @property
    def max_bytes_at(self) -> Mapping[str, int]:
        """The paths whose bodies may be larger than others, in bytes."""
        return {} if self._directory is None else {"/v1/files": self.config.max_file_bytes + FORM_BYTES}

    @property
    def keep_s(self) -> int:
        """Seconds for which files and batches are kept."""
        return int(self.config.keep_days * DAY_S)

    def stores_of(self, http: Request) -> OwnStores:
        """What the sender of ``http`` has.

        Raises:
            NotFound: the server has no files and batches.
        """
        key = key_of(http.scope)
        return self._required().of(None if key is None else key.name)

    async def with_stores(self, http: Request, work: Callable[[OwnStores], T]) -> T:
        """What ``work`` gives for what the sender of ``http`` has. It runs in a thread for files.

        Raises:
            NotFound: the server has no files and batches.
            StorageUnavailable: the directory cannot be used.
        """
        stores = self.stores_of(http)
        with readable_errors():
            return await self.in_thread(work, stores)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` gives. It runs in a thread for files, so a directory that hangs takes no thread of others."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    @asynccontextmanager
    async def new_file(self, files: FileStore) -> AsyncGenerator[NewFile, None]:
        """See ``FileStore.new``."""
        stack = ExitStack()
        try:
            yield await self.in_thread(stack.enter_context, files.new())
        finally:
            await self.in_thread(stack.close)

    def room_for_file(self) -> Room:
        """How large one more file may be.

        Raises:
            InvalidRequest: the directory is full.
        """
        in_directory = self.check_room()
        if in_directory < (limit := self.config.max_file_bytes):
            return Room(in_directory, self._directory_is_full(), self._require_space)
        too_large = BodyTooLarge(f"The file is larger than {limit:,} bytes (batches.max_file_bytes).")
        return Room(limit, too_large, self._require_space)

    def check_room(self) -> int:
        """The bytes that the directory may still get.

        Raises:
            InvalidRequest: none.
        """
        free_bytes = self.config.max_directory_bytes - self._required().num_bytes()
        if free_bytes <= 0:
            raise self._directory_is_full()
        return free_bytes

    def _require_space(self) -> None:
        """Raise InvalidRequest if the directory has more than it may have, files that come now included."""
        if self._required().num_bytes() > self.config.max_directory_bytes:
            raise self._directory_is_full()

    def _directory_is_full(self) -> InvalidRequest:
        return InvalidRequest(
            f"All files and batches of this server together would have more than {self.config.max_directory_bytes:,} "
            "bytes (batches.max_directory_bytes). Delete files that are not needed any more."
        )

    @asynccontextmanager
    async def running(self, service: Service, keys: ApiKeys, app: ASGIApp) -> AsyncGenerator[None, None]:
        """Run batches while the context lasts; ``app`` answers their requests."""
        if self._directory is None:
            yield
            return
        sender = BatchSender(service, keys, InProcessClient(app))
        limits = InputLimits(self.config.max_requests, service.config.limits.max_body_bytes)
        send = on_this_loop(sender.send)
        worker = BatchWorker(self._directory, send, limits=limits, keep_s=self.keep_s, may_run=sender.knows)
        service.metrics.show_batches(lambda: worker.num_running)
        async with in_own_thread(worker.run()):
            yield

    def _required(self) -> BatchDirectory:
        if self._directory is None:
            raise NotFound("This server keeps no files and no batches: `batches.directory` of its config is not set.")
        return self._directory


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn an error of the directory into one for the client."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"The directory of files and batches cannot be used: {error.strerror or error}."
        ) from error
