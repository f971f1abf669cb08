"""What requests see while Ray's controller is slow or away: the last known states."""

import asyncio
import threading
import time

import pytest

from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.serving import cluster
from phi3_serve.serving.cluster import ClusterView


def test_many_requests_cost_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ClusterView({}, app_name="phi3", elastic=False)
    readings = []

    def read() -> dict[str, VariantState]:
        readings.append(1)
        time.sleep(0.05)
        return {"m": VariantState("ready")}

    monkeypatch.setattr(view, "_read", read)

    async def many() -> None:
        await asyncio.gather(*(view.states() for _ in range(100)))

    asyncio.run(many())
    assert len(readings) == 1


def test_a_controller_that_hangs_or_fails_leaves_the_last_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MAX_AGE_S", 0.0)
    view = ClusterView({}, app_name="phi3", elastic=False)
    known = {"m": VariantState("ready")}
    release = threading.Event()

    def failing() -> dict[str, VariantState]:
        raise ConnectionError("no controller")

    def hanging() -> dict[str, VariantState]:
        release.wait(20)
        return {"m": VariantState("loading")}

    async def story() -> None:
        monkeypatch.setattr(view, "_read", failing)
        with pytest.raises(ModelUnavailable) as caught:
            await view.states()
        assert caught.value.message == "The state of the cluster cannot be read now."
        monkeypatch.setattr(view, "_read", lambda: known)
        assert await view.states() == known
        monkeypatch.setattr(view, "_read", failing)
        assert await view.states() == known
        monkeypatch.setattr(view, "_read", hanging)
        began = time.monotonic()
        assert await view.states() == known
        assert time.monotonic() - began < 2
        release.set()
        await asyncio.sleep(0.2)
        assert (await view.states())["m"].state == "loading"

    asyncio.run(story())


def test_no_request_is_refused_because_of_an_old_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has become ready, and the reading that says it takes its time."""

    def slowly() -> dict[str, VariantState]:
        time.sleep(3 * cluster.MAX_WAIT_S)
        return {"m": VariantState("ready")}

    async def story() -> None:
        view = ClusterView({}, app_name="phi3", elastic=False)
        monkeypatch.setattr(view, "_read", lambda: {"m": VariantState("loading")})
        assert (await view.state_of("m")).state == "loading"
        monkeypatch.setattr(cluster, "MAX_AGE_S", 0.0)
        monkeypatch.setattr(view, "_read", slowly)
        assert (await view.states())["m"].state == "loading"
        assert (await view.state_of("m")).state == "ready"

    asyncio.run(story())


def test_a_new_state_is_read_after_it_is_asked_for_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ClusterView({}, app_name="phi3", elastic=False)
    began, release = [], threading.Event()
    detail = "old"

    def read() -> dict[str, VariantState]:
        began.append(time.monotonic())
        found = {"m": VariantState("scaled_to_zero", detail)}
        release.wait(20)
        return found

    monkeypatch.setattr(view, "_read", read)

    async def story() -> None:
        nonlocal detail
        first = asyncio.create_task(view.states())
        while not began:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        detail = "new"
        others = [asyncio.create_task(view.new_state_of("m")) for _ in range(10)]
        await asyncio.sleep(0)
        release.set()
        assert (await first)["m"].detail == "old"
        assert {state.detail for state in await asyncio.gather(*others)} == {"new"}
        assert len(began) == 2
        assert began[1] - began[0] >= cluster.MAX_AGE_S

    asyncio.run(story())


def test_a_new_state_is_the_last_known_one_while_the_controller_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MAX_AGE_S", 0.0)
    view = ClusterView({}, app_name="phi3", elastic=False)
    known = {"m": VariantState("scaled_to_zero")}

    def failing() -> dict[str, VariantState]:
        raise ConnectionError("no controller")

    async def story() -> None:
        monkeypatch.setattr(view, "_read", lambda: known)
        await view.states()
        monkeypatch.setattr(view, "_read", failing)
        assert await view.new_state_of("m") == known["m"]

    asyncio.run(story())
