"""The threads in which texts become token ids."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Generic, TypeVar

from phi3_serve import overload
from phi3_serve.core.generation_request import RequestOptions
from phi3_serve.core.prompt import Conversation, Prompt, RawPrompt
from phi3_serve.errors import RequestTimeout

LONG_CHARACTERS = 200_000  # encoding them takes a sixth of a second
LONG_AT_ONCE = 2

Result = TypeVar("Result")


class Encoding(Generic[Result]):
    """One piece of work in a thread, perhaps behind others."""

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> None:
        """Put ``work``, in the context of the caller, into the queue of ``pool``."""
        loop = asyncio.get_running_loop()
        self._has_begun = asyncio.Event()

        def run() -> Result:
            loop.call_soon_threadsafe(self._has_begun.set)
            return work()

        self._in_thread = pool.submit(copy_context().run, run)
        self.result: asyncio.Future[Result] = asyncio.wrap_future(self._in_thread)
        """What the work returns or raises. To cancel it takes the work out of the queue, if it has not begun."""

    async def begun(self, options: RequestOptions) -> None:
        """Wait until the work has begun.

        Raises:
            RequestTimeout, Overloaded: this takes longer than a request with ``options`` may run or wait.
        """
        wait_s = options.timeout_s if options.queue_timeout_s is None else options.queue_timeout_s
        try:
            async with asyncio.timeout(min(wait_s, options.timeout_s)):
                await self._has_begun.wait()
        except TimeoutError:
            if wait_s < options.timeout_s:
                raise overload.waited_too_long() from None
            raise RequestTimeout("The request did not finish in time: other long texts are being encoded.") from None

    def leave(self, then: Callable[[], None]) -> None:
        """Take the work out of the queue, or let it end if it has begun. Then call ``then``, perhaps in its thread."""
        self.result.cancel()  # so that nobody misses its error
        self._in_thread.cancel()
        self._in_thread.add_done_callback(lambda _: then())


class EncodingThreads:
    """Long texts have threads of their own, where they wait for each other. So they hold up no other text."""

    def __init__(self) -> None:
        self._for_texts = ThreadPoolExecutor(thread_name_prefix="encode-text")
        self._for_long_texts = ThreadPoolExecutor(LONG_AT_ONCE, "encode-long-text")

    def start(self, prompt: Prompt, work: Callable[[], Result]) -> Encoding[Result]:
        """Let a thread do ``work``, which encodes ``prompt``."""
        is_long = _num_characters(prompt) > LONG_CHARACTERS
        return Encoding(self._for_long_texts if is_long else self._for_texts, work)


def _num_characters(prompt: Prompt) -> int:
    match prompt:
        case RawPrompt(text, prefix):
            return len(prefix) + len(text)
        case Conversation(messages):
            return sum(len(message.content) for message in messages)
    return 0
