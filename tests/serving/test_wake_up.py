"""One waiting call for each sleeping model, and none for a model that answers."""

import asyncio
from typing import Any

from phi3_serve.core.variant_state import VariantState
from phi3_serve.serving.wake_up import WakeUpCalls


class WaitingHandle:
    """A deployment handle whose calls wait as long as no replica runs."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.replica_runs = asyncio.Event()
        self.num_cancelled = 0

    @property
    def ping(self) -> Any:
        return self

    async def remote(self) -> None:
        self.num_calls += 1
        try:
            await self.replica_runs.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


def test_a_sleeping_model_has_one_waiting_call() -> None:
    async def story() -> None:
        handle: Any = WaitingHandle()
        calls = WakeUpCalls({"m": handle})
        for _ in range(3):
            calls.start("m")
            await asyncio.sleep(0)
        assert handle.num_calls == 1
        for state in ("scaled_to_zero", "loading"):
            calls.cancel_answered({"m": VariantState(state)})
            await asyncio.sleep(0)
        assert handle.num_cancelled == 0
        calls.cancel_answered({"m": VariantState("failed")})
        await asyncio.sleep(0)
        assert handle.num_cancelled == 1
        handle.replica_runs.set()
        for _ in range(2):  # one that was answered makes place for the next
            calls.start("m")
            await asyncio.sleep(0.01)
        assert handle.num_calls == 3

    asyncio.run(story())
