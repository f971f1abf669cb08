"""The window opens while the server takes requests, and halves when it refuses."""

import asyncio

from phi3_serve.batch.window import START, Window


async def use(window: Window, num_answered: int) -> None:
    for _ in range(num_answered):
        async with window.place() as place:
            place.answered()


def test_it_opens_by_one_an_answer_until_it_is_as_large_as_it_may_be() -> None:
    window = Window(largest=20)
    asyncio.run(use(window, 5))
    assert window.limit == START + 5
    asyncio.run(use(window, 50))
    assert window.limit == 20
    assert Window(largest=3).limit == 3


def test_a_refusal_halves_it_once_for_all_that_were_sent_before() -> None:
    async def refused(window: Window) -> None:
        async with window.place() as first, window.place() as second:
            first.refused()
            second.refused()
        async with window.place() as later:
            later.refused()

    window = Window(largest=64)
    asyncio.run(refused(window))
    assert window.limit == START / 4


def test_after_a_refusal_it_opens_by_one_a_window() -> None:
    async def refuse(window: Window) -> None:
        async with window.place() as place:
            place.refused()

    window = Window(largest=64)
    asyncio.run(refuse(window))
    asyncio.run(use(window, int(window.limit)))
    assert START / 2 < window.limit < START / 2 + 1.01


def test_it_never_closes() -> None:
    async def refuse(window: Window) -> None:
        for _ in range(10):
            async with window.place() as place:
                place.refused()

    window = Window(largest=64)
    asyncio.run(asyncio.wait_for(refuse(window), 5))
    assert window.limit == 1


def test_no_more_are_in_flight_than_the_limit() -> None:
    most = 0

    async def crowd(window: Window) -> None:
        inside = 0

        async def one() -> None:
            nonlocal inside, most
            async with window.place():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(one() for _ in range(40)))

    asyncio.run(crowd(Window(largest=64)))
    assert most == START
