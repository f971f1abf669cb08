"""vLLM's serving benchmark: the bodies that it sends by default, and its way to read a stream. vLLM itself is too large.

Source: vLLM at 02cfb534, ``vllm/benchmarks/lib/endpoint_request_func.py``: ``async_request_openai_completions``,
``async_request_openai_chat_completions`` and ``StreamedResponseHandler``.
"""

import asyncio
import json
import sys
from typing import Any

import aiohttp

NUM_TOKENS = 8


async def check(url: str, model: str) -> None:
    """Several requests at once, with and without ``ignore_eos``, as ``vllm bench serve`` sends them."""
    common: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    of_completion = {"prompt": "1, 2, 3,", "repetition_penalty": 1.0, "max_tokens": NUM_TOKENS, "logprobs": None}
    message = {"role": "user", "content": [{"type": "text", "text": "What is 2+2?"}]}
    of_chat = {"messages": [message], "max_completion_tokens": NUM_TOKENS}
    async with aiohttp.ClientSession() as session:
        for path, body in (("completions", of_completion), ("chat/completions", of_chat)):
            for option in ({}, {"ignore_eos": True}, {"ignore_eos": True, "temperature": 0.0}):
                sent = {**common, **body, **option}
                answers = await asyncio.gather(*(_ask(session, f"{url}/v1/{path}", sent) for _ in range(4)))
                for num_chunks, usage in answers:
                    assert num_chunks > 0
                    assert usage["prompt_tokens"] > 0
                    assert not option or usage["completion_tokens"] == NUM_TOKENS


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """The number of chunks with a choice, and the usage. What begins with a colon is a comment."""
    num_chunks, usage, buffer = 0, {}, ""
    async with session.post(url, json=body, headers={"x-request-id": "benchmark-serving0"}) as response:
        assert response.status == 200, await response.text()
        async for piece in response.content.iter_any():
            *messages, buffer = (buffer + piece.decode()).split("\n\n")
            for message in messages:
                chunk = message.strip().removeprefix("data: ")
                if message.startswith(":") or chunk == "[DONE]":
                    continue
                found = json.loads(chunk)
                num_chunks += bool(found.get("choices"))
                if not found.get("choices"):
                    usage = found["usage"]
    assert buffer == ""
    return num_chunks, usage


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], sys.argv[3]))
