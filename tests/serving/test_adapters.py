"""What a replica does with the adapters that requests name: which it has, loads, keeps, drops and refuses."""

import asyncio
import gc
import json
import random
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from phi3_serve.config.adapter import AdapterConfig
from phi3_serve.core.adapter import AdapterChoice, AdapterCounts, AppliedAdapter
from phi3_serve.core.event import Begun, Done, Event, Failed, Queued
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import TokenPrompt
from phi3_serve.core.tokenization import TokenizationRequest
from phi3_serve.engine.snapshot import fetch_adapter
from phi3_serve.errors import (
    AdapterUnavailable,
    CheckpointError,
    CheckpointIncomplete,
    Overloaded,
    RequestTimeout,
    SourceUnreachable,
    UnknownModel,
)
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving import adapters as module
from phi3_serve.serving.adapter_memory import AdapterMemory
from phi3_serve.serving.adapters import READS_AT_ONCE, Adapters
from phi3_serve.serving.replica import Replica
from tests.hub import REVISION, running_hub
from tests.oracle.adapters import AdapterOracle, save_adapter
from tests.support import ENDLESS, engine_of, local_replica

PATIENT = RequestOptions(timeout_s=20)
PROMPT = (64, 312, 397, 616, 310, 685, 38, 152, 200, 282)


@dataclass(eq=False)
class Fake:
    """An adapter of a stated size."""

    name: str
    num_bytes: int = 10
    number: int = 0


def config(name: str, source: str = "/somewhere", **given: Any) -> AdapterConfig:
    return AdapterConfig(name=name, source=source, **given)


def choices(**strengths: float | None) -> tuple[AdapterChoice, ...]:
    return tuple(AdapterChoice(name, strength) for name, strength in strengths.items())


# Decisions


def test_the_memory_drops_what_was_not_used_for_the_longest_time() -> None:
    memory: AdapterMemory[str] = AdapterMemory(30)
    for name in "abc":
        memory.add(name, Fake(name))
    assert memory.get("a") is not None
    memory.add("d", Fake("d"))
    assert [memory.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert (len(memory), memory.num_bytes, memory.num_evictions) == (3, 30, 1)
    memory.add("large", Fake("large", 100))  # else it would be read for each request
    assert (len(memory), memory.num_bytes) == (1, 100)
    memory.keep(lambda key: False)
    assert (len(memory), memory.num_bytes, memory.num_evictions) == (0, 0, 4)


@pytest.mark.thorough
def test_what_is_dropped_lives_as_long_as_a_request_holds_it() -> None:
    memory: AdapterMemory[str] = AdapterMemory(10)
    memory.add("a", held := Fake("a"))
    alive = weakref.ref(held)
    memory.add("b", Fake("b"))
    gc.collect()
    assert alive() is held
    del held
    gc.collect()
    assert alive() is None


def test_an_adapter_is_loaded_once_for_all_that_wait() -> None:
    reads: list[str] = []

    def read(name: str, directory: Path) -> Fake:
        reads.append(name)
        time.sleep(0.05)
        return Fake(name)

    async def story() -> None:
        adapters = Adapters("m", 100, read)
        adapters.offer([config("a"), config("b", strength=0.5)])
        results = await asyncio.gather(*(adapters.applied(choices(a=None, b=None), PATIENT) for _ in range(20)))
        assert sorted(reads) == ["a", "b"]
        assert {(one.adapter.name, one.strength) for result in results for one in result} == {("a", 1.0), ("b", 0.5)}
        assert len({id(one.adapter) for result in results for one in result}) == 2
        assert await adapters.applied(choices(a=0.0, b=2.0), PATIENT) == (AppliedAdapter(results[0][1].adapter, 2.0),)
        assert adapters.counts.num_loads == 2

    asyncio.run(story())


def test_a_few_reads_that_hang_hold_up_no_other_load() -> None:
    may_go_on = threading.Event()

    def read(name: str, directory: Path) -> Fake:
        if name.startswith("hanging"):
            may_go_on.wait(20)
        return Fake(name)

    async def story() -> None:
        adapters = Adapters("m", 100, read)
        adapters.offer([config(name) for name in ("hanging1", "hanging2", "hanging3", "good")])
        for number in (1, 2, 3):
            with pytest.raises(RequestTimeout):
                await adapters.applied(choices(**{f"hanging{number}": None}), RequestOptions(timeout_s=0.05))
        assert [
            one.adapter.name for one in await adapters.applied(choices(good=None), RequestOptions(timeout_s=5))
        ] == ["good"]
        may_go_on.set()

    asyncio.run(story())


def test_slow_loads_delay_neither_other_requests_nor_their_own_timeouts() -> None:
    """All threads that read are busy."""
    may_go_on = threading.Event()

    def read(name: str, directory: Path) -> Fake:
        if name.startswith("slow"):
            may_go_on.wait(20)
        return Fake(name)

    async def story() -> None:
        adapters = Adapters("m", 100, read)
        slow = [f"slow{number}" for number in range(READS_AT_ONCE)]
        adapters.offer([config(name) for name in ["warm", *slow]])
        await adapters.applied(choices(warm=None), PATIENT)
        began = time.monotonic()
        waiting = [asyncio.create_task(adapters.applied(choices(**{name: None}), PATIENT)) for name in slow]
        await asyncio.sleep(0.05)
        assert len(await adapters.applied(choices(warm=None), PATIENT)) == 1
        assert await asyncio.to_thread(lambda: "free") == "free"  # where other requests are encoded
        with pytest.raises(RequestTimeout):
            await adapters.applied(choices(slow0=None), RequestOptions(timeout_s=0.1))
        with pytest.raises(Overloaded) as late:
            await adapters.applied(choices(slow0=None), RequestOptions(timeout_s=9, queue_timeout_s=0.1))
        assert late.value.refused_by == "queue_timeout"
        assert time.monotonic() - began < 5
        may_go_on.set()
        assert [one.adapter.name for (one,) in await asyncio.gather(*waiting)] == slow
        assert adapters.counts.num_loads == 1 + len(slow)  # the impatient ones have neither ended nor repeated a load

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "retry_after_s", "reason"),
    [
        (CheckpointError("/a/adapter_config.json: r is 0"), None, "/a/adapter_config.json: r is 0"),
        (SourceUnreachable("the Hub does not answer"), 10, "the Hub does not answer"),
        (ZeroDivisionError("by\nzero"), None, "ZeroDivisionError: by zero"),
    ],
)
def test_a_failure_is_remembered_for_a_short_time(
    monkeypatch: pytest.MonkeyPatch, error: Exception, retry_after_s: float | None, reason: str
) -> None:
    num_reads = 0

    def read(name: str, directory: Path) -> Fake:
        nonlocal num_reads
        num_reads += 1
        raise error

    async def refusal(adapters: Adapters) -> AdapterUnavailable:
        with pytest.raises(AdapterUnavailable) as caught:
            await adapters.applied(choices(a=None), PATIENT)
        return caught.value

    async def story() -> None:
        adapters = Adapters("m", 100, read)
        adapters.offer([config("a")])
        first = await refusal(adapters)
        assert first.message == f"Adapter a of m cannot be loaded: {reason}"
        assert first.retry_after_s == retry_after_s
        await refusal(adapters)
        assert num_reads == 1
        adapters.offer([config("a")])  # the operator may have mended it
        await refusal(adapters)
        assert num_reads == 2
        monkeypatch.setattr(module, "FAILURE_KEPT_S", 0.0)
        adapters.offer([config("a")])
        await refusal(adapters)
        await refusal(adapters)
        assert num_reads == 4
        assert adapters.counts.num_failures == 4

    asyncio.run(story())


def test_what_is_removed_during_its_load_is_given_to_who_waits_and_not_kept() -> None:
    may_go_on = threading.Event()

    def read(name: str, directory: Path) -> Fake:
        may_go_on.wait(20)
        return Fake(name)

    async def story() -> None:
        adapters = Adapters("m", 100, read)
        adapters.offer([config("a")])
        waiting = asyncio.create_task(adapters.applied(choices(a=None), PATIENT))
        await asyncio.sleep(0.05)
        adapters.offer([])
        may_go_on.set()
        assert [one.adapter.name for one in await waiting] == ["a"]
        assert adapters.counts.num_in_memory == 0
        with pytest.raises(UnknownModel) as caught:
            await adapters.applied(choices(a=None), PATIENT)
        assert caught.value.message == "`adapters` names the adapter a, which m does not offer; it offers none."

    asyncio.run(story())


def test_what_is_removed_and_added_again_during_its_load_is_loaded_again() -> None:
    """The files may be others by then."""
    may_go_on = threading.Event()
    versions = ["old", "new"]

    def read(name: str, directory: Path) -> Fake:
        version = versions.pop(0)
        may_go_on.wait(20)
        return Fake(version)

    async def story() -> None:
        adapters = Adapters("m", 100, read)
        adapters.offer([config("a")])
        before = asyncio.create_task(adapters.applied(choices(a=None), PATIENT))
        await asyncio.sleep(0.05)
        adapters.offer([])
        adapters.offer([config("a")])
        after = asyncio.create_task(adapters.applied(choices(a=None), PATIENT))
        await asyncio.sleep(0.05)
        may_go_on.set()
        assert [one.adapter.name for (one,) in await asyncio.gather(before, after)] == ["old", "new"]
        (later,) = await adapters.applied(choices(a=None), PATIENT)
        assert (later.adapter.name, adapters.counts.num_in_memory) == ("new", 1)

    asyncio.run(story())


# A replica with PEFT's adapters


@pytest.fixture(scope="module")
def places(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(directory / name, checkpoint, seed=n) for n, name in enumerate(("poet", "pirate"))}


@pytest.fixture
def replica(checkpoint: Path, places: Mapping[str, Path]) -> Iterator[Replica]:
    replica = local_replica("tested", str(checkpoint))
    replica.reconfigure({"adapters": [{"name": name, "source": str(place)} for name, place in places.items()]})
    yield replica
    engine_of(replica).close()


def request(**strengths: float | None) -> GenerationRequest:
    return GenerationRequest(
        request_id=uuid.uuid4().hex,
        model="tested",
        prompt=TokenPrompt(PROMPT),
        parameters=GenerationParameters(do_sample=False, max_new_tokens=24, **ENDLESS),
        adapters=choices(**strengths),
        options=PATIENT,
    )


async def last_event(replica: Replica, asked: GenerationRequest) -> Event:
    return [event async for event in replica.generate(asked)][-1]


async def tokens(replica: Replica, **strengths: float | None) -> list[int]:
    done = await last_event(replica, request(**strengths))
    assert isinstance(done, Done), done
    return list(done.completions[0].sequence.token_ids)


@pytest.mark.parametrize("strengths", [{"poet": 1.0}, {"pirate": 0.3}, {"poet": 0.7, "pirate": 1.5}])
def test_the_answer_is_that_of_peft(
    replica: Replica, checkpoint: Path, places: Mapping[str, Path], strengths: dict[str, float]
) -> None:
    answer = asyncio.run(tokens(replica, **strengths))
    assert answer != asyncio.run(tokens(replica))
    assert answer == AdapterOracle.reading(checkpoint, places).greedy(PROMPT, len(answer), **strengths)


def test_names_of_layers_that_phi_3_lacks_are_passed_over_as_in_peft(
    replica: Replica, checkpoint: Path, tmp_path: Path
) -> None:
    """As in the adapters that KAITO has for Phi-3."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    place = save_adapter(tmp_path / "kaito", checkpoint, seed=3, targets=targets)
    replica.reconfigure({"adapters": [{"name": "kaito", "source": str(place)}]})
    answer = asyncio.run(tokens(replica, kaito=1.0))
    assert answer == AdapterOracle.reading(checkpoint, {"kaito": place}).greedy(PROMPT, len(answer), kaito=1.0)
    assert set(json.loads((place / "adapter_config.json").read_text())["target_modules"]) == set(targets)


def test_an_adapter_that_applies_always_is_merged(
    replica: Replica, checkpoint: Path, places: Mapping[str, Path]
) -> None:
    always = AdapterConfig(name="tone", source=str(places["poet"]), strength=0.7, always=True)
    merged = local_replica("tested", str(checkpoint), adapters=(always,))
    assert asyncio.run(tokens(merged)) == asyncio.run(tokens(replica, poet=0.7))
    merged.reconfigure({"adapters": [{"name": "pirate", "source": str(places["pirate"])}]})
    assert asyncio.run(tokens(merged, pirate=1.5)) == asyncio.run(tokens(replica, poet=0.7, pirate=1.5))
    engine_of(merged).close()


def test_a_model_is_not_loaded_without_an_adapter_that_applies_always(checkpoint: Path, tmp_path: Path) -> None:
    always = AdapterConfig(name="tone", source=str(tmp_path / "gone"), always=True)
    with pytest.raises(CheckpointIncomplete, match=r"gone/adapter_config\.json"):
        local_replica("tested", str(checkpoint), adapters=(always,))


def test_strengths_are_those_of_the_request_else_of_the_config(replica: Replica, places: Mapping[str, Path]) -> None:
    weak = asyncio.run(tokens(replica, poet=0.3))
    replica.reconfigure({"adapters": [{"name": "poet", "source": str(places["poet"]), "strength": 0.3}]})
    assert asyncio.run(tokens(replica, poet=None)) == weak
    assert replica._adapters.counts.num_loads == 1  # a changed strength needs no other load


def test_a_strength_of_0_has_no_effect_and_loads_nothing(replica: Replica) -> None:
    assert asyncio.run(tokens(replica, poet=0.0)) == asyncio.run(tokens(replica))
    assert replica._adapters.counts == AdapterCounts()


def test_a_request_ends_with_the_adapters_that_it_began_with(replica: Replica, places: Mapping[str, Path]) -> None:
    async def story() -> None:
        expected = await tokens(replica, poet=None)
        began = asyncio.Event()
        engine = engine_of(replica)
        loop = asyncio.get_running_loop()

        def slow_down(step: object) -> None:
            loop.call_soon_threadsafe(began.set)
            time.sleep(0.02)

        engine._on_step = slow_down
        running = asyncio.create_task(tokens(replica, poet=None))
        await began.wait()
        replica.reconfigure({"adapters": [{"name": "poet", "source": str(places["pirate"])}]})
        other = await tokens(replica, poet=None)
        assert await running == expected
        replica.reconfigure({"adapters": []})
        assert other != expected
        failed = await last_event(replica, request(poet=None))
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, UnknownModel)
        replica.reconfigure({"adapters": [{"name": "pirate", "source": str(places["pirate"])}]})
        assert await tokens(replica, pirate=None) == other

    asyncio.run(story())


def test_a_broken_adapter_costs_only_its_requests(replica: Replica, places: Mapping[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"peft_type": "LORA"')
    sources = {"poet": places["poet"], "broken": broken, "gone": tmp_path / "gone"}
    replica.reconfigure({"adapters": [{"name": name, "source": str(place)} for name, place in sources.items()]})

    async def story() -> None:
        good, *bad = await asyncio.gather(
            tokens(replica, poet=None),
            last_event(replica, request(broken=None)),
            last_event(replica, request(poet=1.0, gone=None)),
        )
        assert len(good) == 24
        for event, place in zip(bad, (broken / "adapter_config.json", tmp_path / "gone"), strict=True):
            assert isinstance(event, Failed)
            assert isinstance(event.error, AdapterUnavailable)
            assert str(place) in event.error.message
            assert "\n" not in event.error.message

    asyncio.run(story())
    assert replica._adapters.counts.num_failures == 2


def test_an_adapter_of_the_hub_is_downloaded_when_a_request_names_it(
    replica: Replica, places: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with running_hub(places["poet"], repository="org/poet") as (hub, endpoint):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        expected = asyncio.run(tokens(replica, poet=1.0))
        poet = {"source": "org/poet", "revision": REVISION}
        replica.reconfigure({"adapters": [{"name": "poet", **poet}, {"name": "gone", "source": "org/gone"}]})
        assert hub.asked == []

        async def story() -> Event:
            answers = await asyncio.gather(*(tokens(replica, poet=1.0) for _ in range(4)))
            assert answers == [expected] * 4
            return await last_event(replica, request(gone=None))

        failed = asyncio.run(story())
        snapshots = [path for path in hub.asked if path.startswith(f"/api/models/org/poet/tree/{REVISION}")]
        assert len(snapshots) == 1
        assert isinstance(failed, Failed)
        assert "there is no such repository, or it is private" in str(failed.error)
        assert "\n" not in failed.error.message


@pytest.mark.parametrize("is_pickled", [False, True])
def test_of_a_repository_only_the_files_of_the_adapter_are_downloaded(
    places: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_pickled: bool
) -> None:
    """Repositories of trained adapters often have the checkpoints of the training, too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = shutil.copytree(places["poet"], tmp_path / "repository")
    shutil.copytree(places["poet"], repository / "checkpoint-500")
    (repository / "tokenizer.json").write_text("{}")
    if is_pickled:
        (repository / "adapter_model.safetensors").rename(repository / "adapter_model.bin")
    with running_hub(repository, repository="org/poet") as (hub, endpoint):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        if is_pickled:
            with pytest.raises(CheckpointIncomplete, match=r"no file adapter_model\.safetensors .* may run any code"):
                fetch_adapter("m:poet", "org/poet", REVISION)
        else:
            snapshot = fetch_adapter("m:poet", "org/poet", REVISION)
            found = sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file())
            assert found == ["adapter_config.json", "adapter_model.safetensors"]
    asked = {path.split(f"/{REVISION}/")[1] for path in hub.asked if "/resolve/" in path}
    assert asked == {"adapter_config.json", *(() if is_pickled else ("adapter_model.safetensors",))}


def test_a_request_whose_adapter_is_loaded_is_queued_until_then(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is sent to another replica if this one is lost during a download."""
    monkeypatch.setattr("phi3_serve.serving.replica.SIGN_OF_LIFE_INTERVAL_S", 0.05)
    read = replica._adapters._read

    def slow_read(name: str, directory: Path) -> Any:
        time.sleep(0.4)
        return read(name, directory)

    replica._adapters._read = slow_read

    async def story() -> None:
        began = time.monotonic()
        kinds: list[type[Event]] = []
        async for event in replica.generate(request(poet=None)):
            if not kinds:
                assert time.monotonic() - began < 0.3
            kinds.append(type(event))
        num_queued = kinds.index(Begun)
        assert num_queued > 3
        assert kinds[:num_queued] == [Queued] * num_queued
        assert kinds[-1] is Done
        monkeypatch.setattr("phi3_serve.serving.replica.LOADS_AFTER_S", 10.0)
        monkeypatch.setattr("phi3_serve.serving.replica.QUEUED_AFTER_S", 10.0)
        assert Queued not in [type(event) async for event in replica.generate(request(poet=None))]
        replica.reconfigure({"adapters": [{"name": "gone", "source": "/gone"}]})
        assert [type(event) async for event in replica.generate(request(gone=None))][-1] is Failed

    asyncio.run(story())


def test_a_wrong_user_config_changes_nothing(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    before = replica._adapters.offered
    replica.reconfigure({"adapters": [{"name": "poet", "source": "a", "strength": 99}]})
    assert replica._adapters.offered == before
    replica.reconfigure({})
    assert replica._adapters.offered == ()


def test_a_changed_file_is_read_when_the_adapter_is_loaded_again(
    replica: Replica, checkpoint: Path, places: Mapping[str, Path], tmp_path: Path
) -> None:
    place = save_adapter(tmp_path / "changing", checkpoint, seed=8)
    offered = {"adapters": [{"name": "changing", "source": str(place)}]}
    replica.reconfigure(offered)
    first = asyncio.run(tokens(replica, changing=None))
    save_adapter(place, checkpoint, seed=9)
    assert asyncio.run(tokens(replica, changing=None)) == first
    replica.reconfigure({"adapters": []})
    replica.reconfigure(offered)
    assert asyncio.run(tokens(replica, changing=None)) != first


def test_a_tokenizer_has_no_adapters_but_knows_their_names(replica: Replica) -> None:
    asked = TokenizationRequest(
        model="tested", prompt=TokenPrompt(PROMPT), adapters=choices(pirat=None), options=PATIENT
    )

    async def events() -> list[Any]:
        return [event async for event in replica.tokenize(asked)]

    (failed,) = asyncio.run(events())
    assert isinstance(failed, Failed)
    assert failed.error.message == (
        "`adapters` names the adapter pirat, which tested does not offer; did you mean pirate?"
    )


# Many adapters


NUM_ADAPTERS, NUM_CLIENTS, NUM_OFFERED, ROUNDS = 200, 8, 50, 4


@pytest.mark.slow
def test_200_adapters_come_and_go_under_load(checkpoint: Path, tmp_path: Path) -> None:
    """All answers are those of their adapter. What was removed or dropped leaves the memory of the process."""
    places = many_adapters(tmp_path, checkpoint)
    size = sum(tensor.nbytes for tensor in load_file(places[0] / "adapter_model.safetensors").values())
    replica = local_replica("tested", str(checkpoint), max_waiting=64, adapter_memory_bytes=10 * size)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    read = replica._adapters._read

    def read_and_note(name: str, directory: Path) -> Any:
        alive.add(adapter := read(name, directory))
        return adapter

    replica._adapters._read = read_and_note
    asyncio.run(fill_cache(replica))
    alone: dict[int, list[int]] = {}
    resident = []
    for round_number in range(ROUNDS):
        asyncio.run(one_round(replica, places, alone, seed=round_number))
        gc.collect()
        assert len(alive) <= 10
        resident.append(psutil.Process().memory_info().rss)
    counts = replica._adapters.counts
    assert counts.num_failures == 0
    assert counts.num_loads >= ROUNDS * NUM_ADAPTERS
    assert counts.bytes_in_memory <= 10 * size
    assert len({tuple(answer) for answer in alone.values()}) > NUM_ADAPTERS / 2
    growth = resident[-1] - resident[1]
    print(f"{counts.num_loads} loads of {size:,} bytes, {counts.num_evictions} evictions, RSS grew by {growth:,} bytes")
    assert growth < 10 * size < counts.num_loads * size / 50
    engine_of(replica).close()


async def fill_cache(replica: Replica) -> None:
    """Use each block of the key-value cache once, so that its pages are in the memory of the process."""
    drawn = random.Random(0)
    num_prompts = engine_of(replica).info.cache_tokens // 2000 + 1

    async def ask() -> None:
        prompt = TokenPrompt(tuple(drawn.choices(range(600), k=2000)))
        asked = replace(request(), prompt=prompt, parameters=GenerationParameters(max_new_tokens=1))
        assert isinstance(await last_event(replica, asked), Done)

    for _ in range(0, num_prompts, NUM_CLIENTS):
        await asyncio.gather(*(ask() for _ in range(NUM_CLIENTS)))


async def one_round(replica: Replica, places: list[Path], alone: dict[int, list[int]], seed: int) -> None:
    """Clients ask each adapter while the others come and go; the first answer to each is asked alone."""
    order = random.Random(seed).sample(range(NUM_ADAPTERS), NUM_ADAPTERS)
    for start in range(0, NUM_ADAPTERS, NUM_OFFERED):
        offered = order[start : start + NUM_OFFERED]
        replica.reconfigure({"adapters": [{"name": f"a{n}", "source": str(places[n])} for n in offered]})
        for n in offered:
            if n not in alone:
                alone[n] = await tokens(replica, **{f"a{n}": 1.0})
        waiting = iter(offered)

        async def ask(waiting: Iterator[int] = waiting) -> None:
            for n in waiting:
                assert await tokens(replica, **{f"a{n}": 1.0}) == alone[n]

        await asyncio.gather(*(ask() for _ in range(NUM_CLIENTS)))


def many_adapters(directory: Path, checkpoint: Path) -> list[Path]:
    """One adapter of PEFT with other numbers in each copy."""
    first = save_adapter(directory / "first", checkpoint, seed=0, rank=64)
    tensors = load_file(first / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(1)
    places = [directory / str(n) for n in range(NUM_ADAPTERS)]
    for place in places:
        place.mkdir()
        shutil.copy(first / "adapter_config.json", place)
        drawn = {name: torch.randn(t.shape, generator=generator) * t.std() for name, t in tensors.items()}
        save_file(drawn, place / "adapter_model.safetensors")
    return places
