"""What batches may take of a server."""

import asyncio

import pytest

from phi3_serve.batch.share import Share
from phi3_serve.core.backend_protocol import Occupancy


class Replicas:
    """Hold each request until the test lets it go."""

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.num_requests = 0  # of other clients
        self.num_of_batches = 0
        self.let_go = asyncio.Semaphore(0)

    def occupancy(self, model: str) -> Occupancy:
        return Occupancy(self.num_places, self.num_requests + self.num_of_batches)

    async def ask(self, share: Share) -> None:
        async with share.place("tested"):
            self.num_of_batches += 1
            await self.let_go.acquire()
            self.num_of_batches -= 1


@pytest.mark.parametrize(
    ("num_places", "num_others", "expected"),
    [(8, 0, 4), (8, 3, 4), (8, 4, 4), (8, 6, 2), (8, 8, 0), (8, 20, 0), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 5, 1)],
)
def test_what_other_requests_leave(num_places: int, num_others: int, expected: int) -> None:
    async def check() -> None:
        replicas = Replicas(num_places)
        replicas.num_requests = num_others
        share = Share(0.5, replicas.occupancy)
        tasks = [asyncio.create_task(replicas.ask(share)) for _ in range(10)]
        await asyncio.sleep(0.2)
        assert replicas.num_of_batches == expected
        replicas.num_places, replicas.num_requests = 8, 0
        for _ in tasks:
            replicas.let_go.release()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)

    asyncio.run(check())


def test_the_first_that_waits_is_the_first_that_is_sent() -> None:
    async def check() -> None:
        replicas, order = Replicas(2), list[int]()
        share = Share(0.5, replicas.occupancy)

        async def ask(number: int) -> None:
            async with share.place("tested"):
                order.append(number)

        await asyncio.gather(*(ask(number) for number in range(20)))
        assert order == list(range(20))

    asyncio.run(check())
