"""SGLang's serving benchmark: the bodies that it sends by default, and its way to read a stream. SGLang needs CUDA's torch.

Source: SGLang 0.5.23, ``sglang/benchmark/serving.py``: ``async_request_openai_completions`` and
``async_request_openai_chat_completions``. It takes each line that is not empty for JSON, comments included.
"""

import asyncio
import json
import sys
from typing import Any

import aiohttp

NUM_TOKENS = 8


async def check(url: str, model: str) -> None:
    """Several requests at once, streamed as by default, and with ``--disable-stream``."""
    common: dict[str, Any] = {"model": model, "temperature": 0.0, "ignore_eos": True}
    of_completion = {"prompt": "1, 2, 3,", "best_of": 1, "max_tokens": NUM_TOKENS}
    of_chat = {"messages": [{"role": "user", "content": "What is 2+2?"}], "max_completion_tokens": NUM_TOKENS}
    async with aiohttp.ClientSession() as session:
        for path, body in (("completions", of_completion), ("chat/completions", of_chat)):
            for stream in (True, False):
                sent = {**common, **body, "stream": stream}
                answers = await asyncio.gather(*(_ask(session, f"{url}/v1/{path}", sent) for _ in range(4)))
                assert all(text == answers[0] != "" for text in answers)


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """The text of the answer."""
    async with session.post(url, json=body) as response:
        assert response.status == 200, await response.text()
        if not body["stream"]:
            return _text(json.loads(await response.read()))
        lines = [line.strip() async for line in response.content]
    chunks = [line.decode().removeprefix("data: ") for line in lines if line]
    assert chunks.pop() == "[DONE]"
    return "".join(_text(json.loads(chunk)) for chunk in chunks)


def _text(found: dict[str, Any]) -> str:
    """The text of a chunk or of a plain answer; nothing if it has no choices."""
    choices = found.get("choices") or [{"text": ""}]
    message = choices[0].get("delta") or choices[0].get("message") or {}
    return str(choices[0].get("text") or message.get("content") or "")


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], sys.argv[3]))
