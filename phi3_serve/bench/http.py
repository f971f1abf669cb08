"""``phi3-serve bench http``: a running server, measured by its clients.

Streams of one question over ``/chat`` and ``/v1/chat/completions``, in turns, so many at a time. Tokens are those that
the server counts.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from phi3_serve.bench import plots
from phi3_serve.bench.engine_only import EngineAlone, Stream
from phi3_serve.bench.output import Output
from phi3_serve.bench.worker_process import WorkerProcess
from phi3_serve.client import Client, Unreachable

ENGINE = "the engine alone"
QUESTION = "How to explain Internet for a medieval knight?"
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure."""

    url: str
    model: str
    concurrency: tuple[int, ...]
    new_tokens: int  # at most
    rounds: int
    engine: Path | None  # the checkpoint that the server runs, to measure the engine alone, too


@dataclass(frozen=True, slots=True)
class Line:
    """One endpoint at one concurrency: medians over all answers; totals are medians over the rounds."""

    endpoint: str
    concurrency: int
    answers: int
    tokens: float  # of an answer
    first_token_ms: float
    stream_tokens_per_s: float
    all_tokens_per_s: float


def run(settings: Settings, client: Client, output: Output) -> None:
    """Measure, and show the figures.

    Raises:
        Phi3ServeError: the server cannot be reached, or refuses the question.
    """
    lines = list(measure(settings, client))
    report = {"settings": asdict(settings), "lines": [asdict(line) for line in lines]}
    output.show(report, plots.http, partial(_table, settings, lines), width=130)


def measure(settings: Settings, client: Client) -> Iterator[Line]:
    """Measure all endpoints, and the engine alone, in each round; the first round only warms up."""
    competitors = [*([ENGINE] if settings.engine else []), *ENDPOINTS]
    alone = WorkerProcess(partial(_engine_alone, settings.engine), num_threads=1) if settings.engine else None
    cases = [(endpoint, at_once) for endpoint in competitors for at_once in settings.concurrency]
    found: dict[tuple[str, int], list[tuple[float, list[Stream]]]] = {case: [] for case in cases}
    for number in track(range(settings.rounds + 1), "Measuring", console=Console(stderr=True)):
        for endpoint, at_once in cases:
            if alone and endpoint == ENGINE:
                seconds, streams = alone.call("streams", at_once, settings.new_tokens)
            else:
                seconds, streams = _at_once(settings, client, endpoint, at_once)
            if number:
                found[endpoint, at_once].append((seconds, streams))
    if alone:
        alone.close()
    for (endpoint, at_once), runs in found.items():
        streams = [stream for _, of_run in runs for stream in of_run]
        yield Line(
            endpoint,
            at_once,
            len(streams),
            statistics.median(s.num_tokens for s in streams),
            1000 * statistics.median(s.first_token_s for s in streams),
            statistics.median(s.tokens_per_s for s in streams),
            statistics.median(sum(s.num_tokens for s in of_run) / seconds for seconds, of_run in runs),
        )


def _engine_alone(checkpoint: Path) -> EngineAlone:
    engine = EngineAlone(checkpoint)
    engine.set_question(QUESTION)
    return engine


def _at_once(settings: Settings, client: Client, endpoint: str, number: int) -> tuple[float, list[Stream]]:
    began = time.perf_counter()
    with ThreadPoolExecutor(number) as pool:
        streams = list(pool.map(lambda _: _ask(settings, client, endpoint), range(number)))
    return time.perf_counter() - began, streams


def _ask(settings: Settings, client: Client, endpoint: str) -> Stream:
    """Read one streamed answer."""
    make_body, text_of, tokens_of = ENDPOINTS[endpoint]
    first, tokens = None, None
    began = time.perf_counter()
    for event in client.stream(endpoint, make_body(settings)):
        if first is None and text_of(event):
            first = time.perf_counter() - began
        tokens = tokens_of(event) or tokens
    if first is None or tokens is None:
        raise Unreachable(f"{settings.url}{endpoint}: the stream ended without its last event")
    return Stream(first, time.perf_counter() - began, tokens)


def _chat_body(settings: Settings) -> Body:
    kwargs = {"do_sample": False, "max_new_tokens": settings.new_tokens, "return_dict_in_generate": True}
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": settings.model, "messages": messages, "stream": True, "generate_kwargs": kwargs}


def _openai_body(settings: Settings) -> Body:
    return {
        "model": settings.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": settings.new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _openai_text(event: Body) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


# The request body of an endpoint, the text of one of its events, and the number of tokens in its last event.
ENDPOINTS: Mapping[str, tuple[Callable[[Settings], Body], Callable[[Body], str], Callable[[Body], int | None]]] = {
    "/chat": (
        _chat_body,
        lambda event: event.get("Delta", ""),
        lambda event: event.get("Details", {}).get("usage", {}).get("completion_tokens"),
    ),
    "/v1/chat/completions": (
        _openai_body,
        _openai_text,
        lambda event: (event.get("usage") or {}).get("completion_tokens"),
    ),
}


def _table(settings: Settings, lines: list[Line]) -> Table:
    table = Table(title=f"{settings.model} at {settings.url}, streamed, greedy", title_justify="left")
    for heading in ("Endpoint", "At once", "Answers", "Tokens", "First token, ms", "Tokens/s, one", "Tokens/s, all"):
        table.add_column(heading, justify="left" if heading == "Endpoint" else "right")
    for line in lines:
        numbers = (line.tokens, line.first_token_ms, line.stream_tokens_per_s, line.all_tokens_per_s)
        table.add_row(line.endpoint, str(line.concurrency), str(line.answers), *(f"{n:,.0f}" for n in numbers))
    return table
