"""Which requests of a batch wait, and for which others."""

import asyncio
from collections import Counter
from collections.abc import Iterator

from phi3_serve.api.openai_errors import CODE
from phi3_serve.batch import runner
from phi3_serve.batch.lines import ADAPTER_UNAVAILABLE, Reply, RequestLine
from phi3_serve.errors import AdapterUnavailable

AT_ONCE = 8
LATER = {"error": {"code": ADAPTER_UNAVAILABLE}}


def numbered(count: int) -> Iterator[RequestLine]:
    return (RequestLine(f"{number}", "/v1/completions", {}) for number in range(count))


def test_the_code_is_that_of_the_api() -> None:
    assert CODE[AdapterUnavailable] == ADAPTER_UNAVAILABLE


def test_lines_whose_adapter_is_away_hold_up_no_others() -> None:
    """Every second line names it, many more than are in flight at once; its cause ends when all others are answered."""
    replies: list[tuple[str, int]] = []
    asked = Counter[str]()

    async def send(line: RequestLine) -> Reply:
        asked[line.custom_id] += 1
        await asyncio.sleep(0)
        is_away = int(line.custom_id) % 2 and len(replies) < 100
        return Reply(503, LATER, retry_after_s=0.01) if is_away else Reply(200, {})

    def take(line: RequestLine, reply: Reply) -> None:
        replies.append((line.custom_id, reply.status))

    asyncio.run(asyncio.wait_for(runner.run(numbered(200), send, take, most_at_once=AT_ONCE), 20))
    assert {int(name) % 2 for name, _ in replies[:100]} == {0}
    assert sorted(int(name) for name, _ in replies) == list(range(200))
    assert {status for _, status in replies} == {200}
    assert all(count == 1 for name, count in asked.items() if not int(name) % 2)


def test_a_busy_server_gets_no_further_lines() -> None:
    """A refusal for lack of capacity is no reason to read on."""
    asked: set[str] = set()

    async def send(line: RequestLine) -> Reply:
        asked.add(line.custom_id)
        return Reply(503, {"error": {"code": "model_unavailable"}}, retry_after_s=10)

    async def story() -> None:
        running = asyncio.create_task(runner.run(numbered(1000), send, lambda *_: None, most_at_once=AT_ONCE))
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(story())
    assert len(asked) == AT_ONCE


def test_not_all_lines_wait_in_memory() -> None:
    asked: set[str] = set()

    async def send(line: RequestLine) -> Reply:
        asked.add(line.custom_id)
        return Reply(503, LATER, retry_after_s=10)

    async def story() -> None:
        running = asyncio.create_task(runner.run(numbered(10_000), send, lambda *_: None, most_at_once=AT_ONCE))
        async with asyncio.timeout(20):
            while len(asked) < runner.MOST_SET_ASIDE + AT_ONCE:  # noqa: ASYNC110 - the other side has no event
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(story())
    assert len(asked) == runner.MOST_SET_ASIDE + AT_ONCE
