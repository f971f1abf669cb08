"""``phi3-serve bench overload``: more clients than the server has capacity for.

All clients send one request at once. With ``seconds`` they continue for that time; a refused client waits for the
Retry-After of its answer. Connections are plain asyncio streams, so that the clients use little of the
machine that they measure.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import track
from rich.table import Table

from phi3_serve.bench import plots
from phi3_serve.bench.output import Output

QUESTION = "How to explain Internet for a medieval knight?"
LOST = 0  # the status of an answer that is missing or incomplete


class IncompleteAnswer(Exception):
    """The received bytes are not a complete answer in JSON."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure."""

    url: str
    model: str
    clients: tuple[int, ...]
    new_tokens: int  # at most
    seconds: float  # for which the clients continue; 0: one request each


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int  # of HTTP, or LOST
    seconds: float  # from before the connection was opened until the last byte
    body: Any = None
    retry_after_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens generated."""
        usage = self.body.get("Details", {}).get("usage", {}) if isinstance(self.body, dict) else {}
        return int(usage.get("completion_tokens", 0))


@dataclass(frozen=True, slots=True)
class Line:
    """The result for one number of clients. Times in milliseconds; None without such an answer."""

    clients: int
    answered: int
    refused: int
    others: dict[str, int]
    lost: int
    median_refusal_ms: float | None
    p99_refusal_ms: float | None
    tokens_per_s: float


def run(settings: Settings, output: Output, api_key: str | None = None) -> None:
    """Measure, and show the figures."""
    lines = []
    for clients in track(settings.clients, "Sending", console=Console(stderr=True)):
        lines.append(asyncio.run(measure(settings, clients, api_key)))
    report = {"settings": asdict(settings), "lines": [asdict(line) for line in lines]}
    output.show(report, plots.overload, partial(_table, lines), width=130)


async def measure(settings: Settings, clients: int, api_key: str | None = None) -> Line:
    """One line of the table."""
    request = chat_request(settings.url, chat_body(settings.model, settings.new_tokens), api_key=api_key)
    started = time.perf_counter()
    end = started + settings.seconds
    by_client = await asyncio.gather(*(_ask_until(request, end) for _ in range(clients)))
    return summary(clients, list(chain.from_iterable(by_client)), time.perf_counter() - started)


def summary(clients: int, replies: Sequence[Reply], seconds: float) -> Line:
    """The counts and percentiles of ``replies``."""
    counts = Counter(reply.status for reply in replies)
    refusals = sorted(reply.seconds * 1000 for reply in replies if reply.status == 429)
    return Line(
        clients=clients,
        answered=counts.pop(200, 0),
        refused=counts.pop(429, 0),
        lost=counts.pop(LOST, 0),
        others={str(status): count for status, count in sorted(counts.items())},
        median_refusal_ms=refusals[len(refusals) // 2] if refusals else None,
        p99_refusal_ms=refusals[int(len(refusals) * 0.99)] if refusals else None,
        tokens_per_s=sum(reply.num_tokens for reply in replies) / seconds,
    )


def chat_body(model: str, new_tokens: int) -> dict[str, Any]:
    """A greedy request whose answer has its number of tokens."""
    kwargs = {"do_sample": False, "max_new_tokens": new_tokens, "return_dict_in_generate": True}
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}], "generate_kwargs": kwargs}


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as bytes."""

    host: str
    port: int
    data: bytes


def chat_request(url: str, body: Any, path: str = "/chat", api_key: str | None = None) -> Request:
    """``POST path`` of ``body``, as JSON."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    content = json.dumps(body).encode()
    authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"POST {parts.path}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"{authorization}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return Request(parts.hostname or "127.0.0.1", parts.port or 80, head.encode() + content)


async def ask(request: Request, timeout_s: float = 600) -> Reply:
    """The reply to ``request``, over a new connection."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(request.host, request.port)
            try:
                writer.write(request.data)
                received = await reader.read(-1)
            finally:
                writer.close()
        return _parsed(received, time.perf_counter() - started)
    except (OSError, TimeoutError, IncompleteAnswer):
        return Reply(LOST, time.perf_counter() - started)


def _parsed(received: bytes, seconds: float) -> Reply:
    """The answer in ``received``. Raises IncompleteAnswer."""
    try:
        return _complete(received, seconds)
    except ValueError as error:
        raise IncompleteAnswer from error


def _complete(received: bytes, seconds: float) -> Reply:
    head, _, content = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        content = _joined(content)
    elif len(content) != int(headers.get("content-length", -1)):
        raise ValueError("the answer is incomplete")
    return Reply(int(status.split()[1]), seconds, json.loads(content), float(headers.get("retry-after", 0)))


def _joined(chunks: bytes) -> bytes:
    content = b""
    while True:
        size, _, rest = chunks.partition(b"\r\n")
        if not (length := int(size, 16)):
            return content
        content, chunks = content + rest[:length], rest[length + 2 :]


async def _ask_until(request: Request, end: float) -> list[Reply]:
    replies = [await ask(request)]
    while (now := time.perf_counter()) < end:
        if pause := replies[-1].retry_after_s:
            await asyncio.sleep(min(pause, max(0.0, end - now)))
            if time.perf_counter() >= end:
                break
        replies.append(await ask(request))
    return replies


def _table(lines: Sequence[Line]) -> Table:
    table = Table("clients", "answered", "429", "other", "lost", "429: median", "429: 99th percentile", "tokens/s")
    for line in lines:
        times = [f"{ms:.0f} ms" if ms is not None else "" for ms in (line.median_refusal_ms, line.p99_refusal_ms)]
        others = ", ".join(f"{count} of {status}" for status, count in line.others.items())
        counts = [str(count) for count in (line.clients, line.answered, line.refused)]
        table.add_row(*counts, others or "0", str(line.lost), *times, f"{line.tokens_per_s:,.0f}")
    return table
