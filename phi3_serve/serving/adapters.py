"""The adapters that requests to one replica may name, and their loads.

An adapter is in up to three places, from the largest to the fastest:

1. On the disk: the directory of the config, or the snapshot of a Hub repository, which is downloaded when a request
   names the adapter for the first time.
2. In the main memory: ``AdapterMemory``, of at most ``adapter_memory_bytes``.
3. On the device, which the engine decides.

All methods run on the event loop, and none blocks it. Loads run in threads of their own. So a slow load delays only the
requests that name its adapter.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from phi3_serve import overload
from phi3_serve.catalogue import is_local
from phi3_serve.config.adapter import AdapterConfig
from phi3_serve.core.adapter import Adapter, AdapterChoice, AdapterCounts, AppliedAdapter, OfferedAdapter
from phi3_serve.core.generation_request import RequestOptions
from phi3_serve.errors import AdapterUnavailable, Phi3ServeError, RequestTimeout, unknown_adapter
from phi3_serve.serving.adapter_memory import AdapterMemory
from phi3_serve.serving.load_policy import retry_policy

logger = logging.getLogger("phi3_serve")

# Of directories into the memory. A read of a network file system may hang, and keeps its thread.
READS_AT_ONCE = 8
DOWNLOADS_AT_ONCE = 4
# Seconds. Until then, requests to an adapter that could not be loaded get the same error, without another load.
FAILURE_KEPT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Key:
    """What is loaded. A changed strength needs no other load."""

    name: str
    source: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    heals: bool  # whether the cause may end without a change of the configuration
    until: float  # time.monotonic()


class Adapters:
    """What is offered, what is loaded, and what is being loaded."""

    def __init__(self, model: str, max_bytes: int, read: Callable[[str, Path], Adapter]) -> None:
        """``read`` gets a name and a directory. It is called in threads, and may raise any error."""
        self._model = model
        self._read = read
        self._offered: Mapping[str, AdapterConfig] = {}
        self._memory: AdapterMemory[_Key] = AdapterMemory(max_bytes)
        self._loading: dict[_Key, asyncio.Task[Adapter | _Failure]] = {}
        self._failures: dict[_Key, _Failure] = {}
        self._readers = ThreadPoolExecutor(READS_AT_ONCE, "read-adapter")
        self._downloaders = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, "download-adapter")
        self._num_loads, self._load_s, self._num_failures = 0, 0.0, 0

    @property
    def offered(self) -> tuple[OfferedAdapter, ...]:
        """The adapters that requests may name."""
        return tuple(adapter.offered for adapter in self._offered.values())

    @property
    def counts(self) -> AdapterCounts:
        """What was done until now."""
        return AdapterCounts(
            num_in_memory=len(self._memory),
            bytes_in_memory=self._memory.num_bytes,
            num_loads=self._num_loads,
            load_s=self._load_s,
            num_evictions=self._memory.num_evictions,
            num_failures=self._num_failures,
        )

    def offer(self, adapters: Sequence[AdapterConfig]) -> None:
        """Replace what is offered. Requests in flight keep what they began with; failed loads may be tried again."""
        self._offered = {adapter.name: adapter for adapter in adapters}
        self._memory.keep(self._is_offered)
        # A load that goes on may have read old files. If its adapter is offered again, another load reads the new ones.
        self._loading = {key: load for key, load in self._loading.items() if self._is_offered(key)}
        self._failures.clear()

    def check(self, choices: Sequence[AdapterChoice]) -> None:
        """Raise UnknownModel if an adapter is not offered."""
        for choice in choices:
            self._config_of(choice)

    async def applied(self, choices: Sequence[AdapterChoice], options: RequestOptions) -> tuple[AppliedAdapter, ...]:
        """The adapters that a request names, loaded. One of strength 0 is left out, as it changes nothing.

        Raises:
            UnknownModel: an adapter is not offered.
            AdapterUnavailable: an adapter cannot be loaded.
            RequestTimeout, Overloaded: the loads take longer than the request may run or wait.
        """
        wanted = [(self._config_of(choice), choice.strength) for choice in choices]
        strengths = [adapter.strength if given is None else given for adapter, given in wanted]
        used = [(adapter, strength) for (adapter, _), strength in zip(wanted, strengths, strict=True) if strength]
        wait_s = options.timeout_s if options.queue_timeout_s is None else options.queue_timeout_s
        try:
            async with asyncio.timeout(min(wait_s, options.timeout_s)):
                loaded = await asyncio.gather(*(self._loaded(adapter) for adapter, _ in used))
        except TimeoutError:
            if wait_s < options.timeout_s:
                raise overload.waited_too_long() from None
            raise RequestTimeout("The request did not finish in time: its adapter is being loaded.") from None
        return tuple(AppliedAdapter(adapter, s) for adapter, (_, s) in zip(loaded, used, strict=True))

    def _config_of(self, choice: AdapterChoice) -> AdapterConfig:
        if (found := self._offered.get(choice.name)) is not None:
            return found
        raise unknown_adapter(choice.name, choice.field, self._model, list(self._offered))

    def _is_offered(self, key: _Key) -> bool:
        found = self._offered.get(key.name)
        return found is not None and _key_of(found) == key

    async def _loaded(self, wanted: AdapterConfig) -> Adapter:
        """The adapter from the memory, or else from its one load."""
        key = _key_of(wanted)
        if (found := self._memory.get(key)) is not None:
            return found
        failure = self._failures.get(key)
        if failure is None or failure.until <= time.monotonic():
            if (load := self._loading.get(key)) is None:
                load = self._loading[key] = asyncio.create_task(self._load(key))
            result = await asyncio.shield(load)  # the load goes on for others, and for the next request
            if not isinstance(result, _Failure):
                return result
            failure = result
        retry_after_s = math.ceil(max(1.0, failure.until - time.monotonic())) if failure.heals else None
        message = f"Adapter {wanted.name} of {self._model} cannot be loaded: {failure.reason}"
        raise AdapterUnavailable(message, retry_after_s)

    async def _load(self, key: _Key) -> Adapter | _Failure:
        began = time.monotonic()
        try:
            directory = await self._directory(key)
            loop = asyncio.get_running_loop()
            adapter = await loop.run_in_executor(self._readers, self._read, key.name, directory)
        except Exception as error:  # of any library
            failure = self._failed(key, error)
            if self._ends_current_load(key):
                self._failures[key] = failure
            return failure
        self._num_loads += 1
        self._load_s += (load_s := time.monotonic() - began)
        logger.info("%s: adapter %s loaded in %.2f s, %d bytes", self._model, key.name, load_s, adapter.num_bytes)
        if self._ends_current_load(key):  # else it was removed meanwhile, and only the requests that wait get it
            self._memory.add(key, adapter)
        return adapter

    def _ends_current_load(self, key: _Key) -> bool:
        """End the load that calls this. Whether it was the current one of ``key``, which is then still offered."""
        is_current = self._loading.get(key) is asyncio.current_task()
        if is_current:
            del self._loading[key]
        return is_current

    async def _directory(self, key: _Key) -> Path:
        """Where the files of the adapter are on this machine."""
        from phi3_serve.engine.snapshot import fetch_adapter

        loop = asyncio.get_running_loop()
        is_here = await loop.run_in_executor(self._readers, is_local, key.source)
        pool = self._readers if is_here else self._downloaders
        return await loop.run_in_executor(pool, fetch_adapter, f"{self._model}:{key.name}", key.source, key.revision)

    def _failed(self, key: _Key, error: Exception) -> _Failure:
        self._num_failures += 1
        is_known = isinstance(error, Phi3ServeError)
        reason = " ".join((str(error) if is_known else f"{type(error).__name__}: {error}").split())
        text = "%s: adapter %s cannot be loaded: %s"
        logger.error(text, self._model, key.name, reason, exc_info=None if is_known else error)
        return _Failure(reason, retry_policy(error).heals, time.monotonic() + FAILURE_KEPT_S)


def _key_of(adapter: AdapterConfig) -> _Key:
    return _Key(adapter.name, adapter.source, adapter.revision)
