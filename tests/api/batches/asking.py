"""Batches as a user of OpenAI's SDK makes them."""

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

from openai import OpenAI
from openai.types import Batch

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


def sdk(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def chat(number: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "tested",
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "temperature": 0,
        "max_tokens": 1 + number % 3,
        **more,
    }


def line(custom_id: str, body: dict[str, Any], url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(lines: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def start(client: OpenAI, lines: Sequence[dict[str, Any]] | bytes, endpoint: Any = CHAT, **more: Any) -> Batch:
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    file = client.files.create(file=("questions.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def until(client: OpenAI, batch: Batch, *statuses: str, seconds: float = 60) -> Batch:
    """The batch once it has one of ``statuses``, by default any that is the last."""
    end = time.monotonic() + seconds
    while (now := client.batches.retrieve(batch.id)).status not in (statuses or ENDED):
        assert time.monotonic() < end, now
        time.sleep(0.1)
    return now


def lines_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
