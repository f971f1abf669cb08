"""Work that waits for files waits alone."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from phi3_serve.batch import own_thread
from phi3_serve.batch.own_thread import in_own_thread, on_this_loop


def test_the_loop_goes_on_while_the_work_blocks() -> None:
    let_go = threading.Event()
    done: list[str] = []

    async def work() -> None:
        let_go.wait(20)
        done.append(threading.current_thread().name)
        await asyncio.sleep(20)

    async def main() -> None:
        async with in_own_thread(work()):
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not done
            let_go.set()
            while not done:  # noqa: ASYNC110 - another thread's work has no event of this loop
                await asyncio.sleep(0.01)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 15
    assert done == ["phi3-batches"]


def test_what_is_being_written_is_written_before_the_end() -> None:
    written: list[int] = []

    def write() -> None:
        time.sleep(0.3)
        written.append(1)

    async def main() -> None:
        begun = threading.Event()

        async def work() -> None:
            begun.set()
            await asyncio.to_thread(write)

        async with in_own_thread(work()):
            await asyncio.to_thread(begun.wait, 10)
        assert written == [1]

    asyncio.run(main())


def test_a_directory_that_hangs_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(own_thread, "STOP_TIMEOUT_S", 0.2)
    let_go = threading.Event()

    async def work() -> None:
        let_go.wait(20)

    async def main() -> None:
        async with in_own_thread(work()):
            await asyncio.sleep(0.1)

    with caplog.at_level("ERROR", "ray.serve"):
        asyncio.run(main())
    let_go.set()
    assert "batches still wait for their directory after 0.2 s" in caplog.text


def test_calls_run_on_the_other_loop_and_end_with_their_caller() -> None:
    async def main() -> None:
        here = threading.get_ident()
        seen: list[str] = []
        begun = asyncio.Event()

        async def answer(value: int) -> int:
            assert threading.get_ident() == here
            if value < 0:
                raise ValueError("negative")
            if value > 100:
                begun.set()
                try:
                    await asyncio.sleep(20)
                except asyncio.CancelledError:
                    seen.append("cancelled")
                    raise
            return value + 1

        async def work(call: Callable[[int], Awaitable[int]]) -> None:
            assert threading.get_ident() != here
            seen.append(str(await call(1)))
            try:
                await call(-1)
            except ValueError as error:
                seen.append(str(error))
            await call(1000)

        async with in_own_thread(work(on_this_loop(answer))):
            await asyncio.wait_for(begun.wait(), 10)
        await asyncio.sleep(0.05)
        assert seen == ["2", "negative", "cancelled"]

    asyncio.run(main())
