"""The threads in which texts become token ids."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from phi3_serve.core.prompt import Conversation, Prompt, RawPrompt

LONG_CHARACTERS = 200_000  # encoding them takes a sixth of a second
LONG_AT_ONCE = 2

Result = TypeVar("Result")


class EncodingThreads:
    """Long texts have threads of their own, where they wait for each other. So they hold up no other text."""

    def __init__(self) -> None:
        self._for_long_texts = ThreadPoolExecutor(LONG_AT_ONCE, "encode-long-text")

    async def run(self, prompt: Prompt, work: Callable[[], Result]) -> Result:
        """The result of ``work``, which encodes ``prompt``."""
        pool = self._for_long_texts if _num_characters(prompt) > LONG_CHARACTERS else None
        work_in_context = partial(copy_context().run, work)
        return await asyncio.get_running_loop().run_in_executor(pool, work_in_context)


def _num_characters(prompt: Prompt) -> int:
    match prompt:
        case RawPrompt(text, prefix):
            return len(prefix) + len(text)
        case Conversation(messages):
            return sum(len(message.content) for message in messages)
    return 0
