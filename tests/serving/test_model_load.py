"""A replica whose model cannot be loaded. The loads are real; Ray's part, the other replicas and the store, is a stand-in."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from phi3_serve.config.limits import LimitsConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.core.event import Done, Event, Failed
from phi3_serve.engine.model import select
from phi3_serve.errors import CheckpointError, CheckpointIncomplete, ModelNotLoaded, SourceUnreachable
from phi3_serve.serving import model_load, published_metrics
from phi3_serve.serving.load_policy import retry_policy
from phi3_serve.serving.loaded_replica import LoadedReplica
from phi3_serve.serving.model_loading import load_model
from phi3_serve.serving.other_replicas import Others
from phi3_serve.serving.placement import place
from phi3_serve.serving.replica import Replica, ServedReplica
from phi3_serve.serving.replica_options import ReplicaOptions
from tests.serving.test_replica import request

NAME = "SERVE_REPLICA::phi3#mine#1"


class Ray:
    """What a replica asks of Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.others = Others.NONE
        self.loaded: LoadedReplica | None = None
        self.announced: list[LoadedReplica] = []
        monkeypatch.setattr(model_load, "find_others", lambda options: self.others)
        monkeypatch.setattr(model_load, "last_loaded", lambda deployment: self.loaded)
        monkeypatch.setattr(model_load, "announce", self.announced.append)
        monkeypatch.setattr("phi3_serve.serving.load_status._internal_kv_put", lambda *given, **more: True)
        monkeypatch.setattr("phi3_serve.serving.load_status._internal_kv_del", lambda *given, **more: 1)
        monkeypatch.setattr("phi3_serve.serving.replica.replica_name", lambda: NAME)
        monkeypatch.setattr(model_load, "WATCH_INTERVAL_S", 0.01)

        def at_once(error: Exception) -> Any:
            return replace(retry_policy(error), first_delay_s=0.02, max_delay_s=0.02)

        monkeypatch.setattr(model_load, "retry_policy", at_once)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


def loaded_by(name: str) -> LoadedReplica:
    engine = EngineInfo(
        device="x",
        compute_capability=None,
        dtype="float32",
        weight_dtype="float32",
        quantization="none",
        kv_cache_dtype="float32",
        kernels="cpu",
        replaced_kernels={},
        cache_tokens=16,
        cache_bytes=64,
        weight_bytes=128,
        weight_format="safetensors: BF16",
    )
    return LoadedReplica(name=name, version="any", engine=engine)


def options(source: Path, *, device: Literal["cpu", "cuda"] = "cpu", **fields: Any) -> ReplicaOptions:
    model = ModelConfig(name="mine", source=str(source), device=device, **fields)
    return ReplicaOptions.from_config(model, place(model, cluster_has_gpu=False), LimitsConfig())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it polls what a thread changes
            await asyncio.sleep(0.01)


async def answer(replica: Replica) -> list[Event]:
    return [event async for event in replica.generate(request(max_new_tokens=3))]


@pytest.mark.thorough
def test_a_replica_runs_without_its_model_until_the_source_is_repaired(
    ray: Ray, checkpoint: Path, tmp_path: Path
) -> None:
    async def story() -> None:
        replica = Replica(options(tmp_path / "later"))
        await replica.start()
        await replica.check_health()
        await replica.ping()
        assert await replica.load() == {}
        (event,) = await answer(replica)
        assert isinstance(event, Failed)
        assert isinstance(event.error, ModelNotLoaded)
        assert event.error.message.startswith(
            f"Model mine is not loaded. {tmp_path}/later: no such checkpoint directory. Tried "
        )
        assert event.error.retry_after_s in (1, 10)  # before the next try, or while it runs
        status = replica._load.status
        assert status is not None
        assert status.is_running
        replica.reconfigure({"limits": {"max_waiting_requests": 5}})
        await until(lambda: replica._load.status and replica._load.status.num_tries > 3)
        assert ray.announced == []
        shutil.copytree(checkpoint, tmp_path / "copied")
        (tmp_path / "copied").rename(tmp_path / "later")
        await until(lambda: replica._load.status is None)
        (event,) = await answer(replica)
        assert isinstance(event, Done)
        assert (await replica.load())["num_running"] == 0
        assert replica._model is not None
        assert replica._model.engine.queue.requests == 5  # what was configured before the model was there
        (announced,) = ray.announced
        assert (announced.name, announced.version) == (NAME, options(tmp_path / "later").version)
        assert announced.engine == replica._model.engine.info
        replica._model.engine.close()

    asyncio.run(story())


@pytest.mark.thorough
def test_what_an_engine_learns_later_is_announced_again(ray: Ray, checkpoint: Path) -> None:
    """For example that its first graph with adapters has failed. Of another replica that has loaded since, it is not."""

    def away(deployment: str) -> LoadedReplica | None:
        raise RuntimeError("the head is away")

    async def story(monkeypatch: pytest.MonkeyPatch) -> None:
        replica = Replica(options(checkpoint))
        await replica.start()
        assert replica._model is not None
        (first,) = ray.announced
        ray.loaded = first
        engine = replica._model.engine.info
        await replica._load.announce_changes(engine)
        assert ray.announced == [first]
        changed = replace(engine, replaced_kernels={"adapter_graphs": "x"})
        with monkeypatch.context() as patch:
            patch.setattr(model_load, "last_loaded", away)
            await replica._load.announce_changes(changed)
        assert ray.announced == [first]
        await replica._load.announce_changes(changed)
        assert ray.announced == [first, replace(first, engine=changed)]
        ray.loaded = loaded_by("SERVE_REPLICA::phi3#mine#2")
        await replica._load.announce_changes(engine)
        assert len(ray.announced) == 2
        replica._model.engine.close()

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(story(patch))


@pytest.mark.thorough
def test_a_replica_in_serve_announces_changes(ray: Ray, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_metrics, "publish_interval_s", lambda: 0.01)
    monkeypatch.setattr(published_metrics.PublishedMetrics, "publish", lambda metrics: None)

    async def story() -> None:
        replica = ServedReplica.__new__(ServedReplica)
        await replica.__init__(options(checkpoint))  # type: ignore[misc]
        (ray.loaded,) = ray.announced
        assert replica._model is not None
        found = {"adapter_graphs": "RuntimeError: x"}
        monkeypatch.setattr(type(replica._model.engine._core.runner), "replaced_kernels", found)  # type: ignore[attr-defined]
        await until(lambda: len(ray.announced) > 1)
        assert ray.announced[1].engine.replaced_kernels == found
        replica._publishing.cancel()
        replica._model.engine.close()

    asyncio.run(story())


def test_a_bad_rollout_is_refused(ray: Ray, tmp_path: Path) -> None:
    """Serve then keeps the replicas that answer."""
    ray.others = Others.EARLIER_VERSION
    with pytest.raises(CheckpointIncomplete, match="no such checkpoint directory"):
        asyncio.run(Replica(options(tmp_path / "gone")).start())


def failing_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Let every load raise ``error``; the list grows with each try."""
    tries: list[int] = []

    def fail(*given: Any) -> None:
        tries.append(1)
        raise error

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(model_load, "load_model", fail)
    monkeypatch.setattr(model_load, "release_memory", broken)  # as after an error of the device
    return tries


@pytest.mark.parametrize(
    ("error", "others", "required"),
    [
        (SourceUnreachable("the Hub is away"), Others.EARLIER_VERSION, False),
        (SourceUnreachable("the Hub is away"), Others.NONE, False),  # for a minute
        (CheckpointIncomplete("gone"), Others.SAME_VERSION, False),
        (CheckpointError("damaged"), Others.SAME_VERSION, False),
        (CheckpointError("damaged"), Others.NONE, True),
        (CheckpointError("damaged"), Others.UNKNOWN, False),
    ],
)
def test_a_replica_that_stays_in_its_constructor(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, others: Others, required: bool
) -> None:
    """It would get requests if it ran, while other replicas can answer them."""
    tries = failing_load(monkeypatch, error)
    ray.others = others

    async def story() -> None:
        replica = Replica(options(tmp_path, required=required))
        starting = asyncio.create_task(replica.start())
        await until(lambda: len(tries) > (0 if others is Others.UNKNOWN else 3))
        assert not starting.done()
        if others is not Others.UNKNOWN:
            status = replica._load.status
            assert status is not None
            assert not status.is_running
        if others is Others.SAME_VERSION:  # the others have ended
            ray.others = Others.NONE
            async with asyncio.timeout(20):
                await starting
            status = replica._load.status
            assert status is not None
            assert status.is_running
        starting.cancel()

    asyncio.run(story())


def test_a_cause_that_does_not_pass_within_a_minute(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_load, "PATIENCE_S", 1.0)
    tries = failing_load(monkeypatch, SourceUnreachable("the Hub is away"))

    async def story() -> int:
        replica = Replica(options(tmp_path))
        await replica.start()
        assert replica._load.status is not None
        assert replica._load.status.is_running
        return len(tries)

    assert asyncio.run(story()) > 1


@pytest.mark.thorough
def test_a_replica_without_its_model_ends_when_another_one_has_loaded(ray: Ray, tmp_path: Path) -> None:
    reasons: list[str] = []
    ray.loaded = loaded_by("SERVE_REPLICA::phi3#mine#0")

    async def story() -> None:
        replica = Replica(options(tmp_path / "gone"), reasons.append)
        await replica.start()
        await asyncio.sleep(0.2)
        assert reasons == []
        ray.loaded = loaded_by("SERVE_REPLICA::phi3#mine#2")
        await until(lambda: reasons)

    asyncio.run(story())
    assert reasons == ["another replica has loaded mine, and this one has not"]


def test_a_failure_that_nobody_knows_is_tried_again_in_a_new_process(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = failing_load(monkeypatch, RuntimeError("CUDA error: an illegal memory access\nwas encountered"))
    reasons: list[str] = []

    async def story() -> None:
        replica = Replica(options(tmp_path), reasons.append)
        await replica.start()
        status = replica._load.status
        assert status is not None
        assert status.text == "mine: RuntimeError: CUDA error: an illegal memory access was encountered"
        assert not status.heals
        assert len(tries) == 1
        await until(lambda: reasons)

    asyncio.run(story())
    assert reasons[0] == "its model could not be loaded; a new process tries again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_torch_does_not_see_is_looked_for_in_a_new_process(ray: Ray, checkpoint: Path) -> None:
    """Torch looks for devices once in a process."""
    reasons: list[str] = []

    async def story() -> None:
        replica = Replica(options(checkpoint, device="cuda"), reasons.append)
        await replica.start()
        status = replica._load.status
        assert status is not None
        assert status.text == "mine: device is cuda, but torch sees no GPU on this node"
        assert not status.heals
        await until(lambda: reasons)

    asyncio.run(story())
    assert reasons[0] == "its model could not be loaded; a new process tries again"


def test_a_chat_template_that_cannot_be_used_leaves_no_engine_behind(
    ray: Ray, checkpoint: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "template")
    (source / "chat_template.jinja").write_text("{% for %}")

    async def story() -> None:
        replica = Replica(options(source))
        await replica.start()
        status = replica._load.status
        assert status is not None
        assert "chat template" in status.text

    before = sum(thread.name == "phi3-engine" for thread in threading.enumerate())
    asyncio.run(story())
    assert sum(thread.name == "phi3-engine" for thread in threading.enumerate()) == before


def test_a_replica_whose_lack_of_a_model_cannot_be_published_stays_in_its_constructor(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ingress would send it requests."""
    tries = failing_load(monkeypatch, CheckpointIncomplete("gone"))

    def away(*given: Any, **more: Any) -> None:
        raise RuntimeError("the head is away")

    async def story() -> None:
        replica = Replica(options(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr("phi3_serve.serving.load_status._internal_kv_put", away)
            starting = asyncio.create_task(replica.start())
            await until(lambda: len(tries) > 3)
            assert not starting.done()
        async with asyncio.timeout(20):
            await starting

    asyncio.run(story())


def test_outside_serve_a_failure_is_an_exception(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIncomplete):
        asyncio.run(Replica(options(tmp_path / "gone")).start())


def test_parts_that_the_config_turns_off_are_turned_off(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, bool] = {}

    def new_runner(*_: Any, **options: bool) -> None:
        given.update(options)
        raise RuntimeError("enough")

    monkeypatch.setattr(select, "new_runner", new_runner)
    off = options(checkpoint, cuda_graphs=False, flash_attention=False)
    with pytest.raises(RuntimeError, match="enough"):
        load_model(off, lambda error: None, lambda text: None)
    assert given == {"cuda_graphs": False, "flash_attention": False, "releases_weights": True}


def test_delays_grow_and_differ() -> None:
    for error, first, last in (
        (SourceUnreachable("x"), 2, 60),
        (CheckpointIncomplete("x"), 5, 60),
        (CheckpointError("x"), 300, 300),
        (RuntimeError("x"), 300, 300),
    ):
        policy = retry_policy(error)
        for num_tries, expected in ((1, first), (2, min(2 * first, last)), (10_000, last)):
            delays = {policy.delay_s(num_tries) for _ in range(50)}
            assert len(delays) > 1
            assert all(0.8 * expected <= delay <= 1.2 * expected for delay in delays)


def test_only_what_makes_a_replica_different_makes_another_version(tmp_path: Path) -> None:
    assert options(tmp_path).version == options(tmp_path).version
    assert options(tmp_path).version != options(tmp_path, reload="2026-11-30").version
    assert options(tmp_path).version != options(tmp_path / "other").version
