"""The adapters of a GPU's runner against those of the runner of a CPU, which reads them in another form."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.core.adapter import Adapter, AppliedAdapter
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.adapters import places
from phi3_serve.engine.adapters.device_tier import copy_at_once
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.pages import PageLayout
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.engine_core import EngineCore, StepStats
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kernels import triton_low_rank
from phi3_serve.engine.kernels.contract import ADD_LOW_RANK, AdaptedTiles, DeviceKernels, PagedLowRank
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import Finding, with_fallbacks
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.sampling.device_sampler import TorchChooser
from phi3_serve.engine.scheduler import Plan
from phi3_serve.errors import InvalidRequest
from tests.engine import asking
from tests.engine.adapters.drawing import applied, drawn
from tests.engine.model.replayer import Replayer, runner_on_cpu
from tests.random_checkpoint import Shape, make

NUM_PAGES = 4
PREEMPTED = 0.1  # of the steps
VOCAB = 704
SHAPE = Shape(num_layers=2, hidden_size=48, intermediate_size=80, num_heads=3, num_kv_heads=1)
FEW_LAYERS = {0, 3, 5, 6, 8}  # places that an adapter leaves alone; 8 is the head


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("adapters")
    make(directory, SHAPE, seed=4)
    return load("adapters", str(directory), None, device="cpu", dtype="float32")


def sizes_of(loaded: LoadedModel, *, num_pages: int = NUM_PAGES, num_blocks: int = 40) -> EngineSizes:
    num_bytes = num_pages * PageLayout(loaded.model.config, torch.float32).num_bytes
    return EngineSizes(num_blocks=num_blocks, token_budget=64, max_rows=8, adapter_bytes=num_bytes)


@dataclass
class Both:
    """The same sequences with the same adapters on the host and on the device."""

    on_host: ModelRunner
    on_device: DeviceRunner
    graphs: Replayer
    sequences: list[tuple[CachedSequence, CachedSequence]] = field(default_factory=list)

    def add(self, length: int, *adapters: LoadedAdapter, strength: float = 1.0) -> None:
        number = len(self.sequences)
        tokens = [(7 * number + 3 * index) % VOCAB for index in range(length)]
        prepared: list[Adapter] = [self.on_device.prepare_adapter(adapter) for adapter in adapters]
        pair = [
            CachedSequence(tokens, adapters=applied(*of_runner, strength=strength))
            for of_runner in (adapters, prepared)
        ]
        for sequence in pair:
            sequence.block_table.extend(range(5 * number, 5 * number + 5))
        self.sequences.append((pair[0], pair[1]))

    def run(self, *counts: tuple[int, int, int]) -> Tensor:
        """Run (sequence, tokens, logits) in one step, and compare; the logits of the device."""
        of_host, of_device = (
            [Chunk(self.sequences[index][side], tokens, logits) for index, tokens, logits in counts] for side in (0, 1)
        )
        expected, found = self.on_host.run(of_host), self.on_device.run(of_device)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for index, tokens, _ in counts:
            for sequence in self.sequences[index]:
                sequence.num_cached += tokens
                if sequence.num_cached == len(sequence):
                    sequence.append((index + 11 * len(sequence)) % VOCAB)
        return found.clone()


class TritonAdapters(ReferenceKernels):
    """The kernel of adapters in Triton's interpreter; the others would take most of the time."""

    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        triton_low_rank.add_low_rank(x, output, change, tiles)


def both_of(loaded: LoadedModel, kernels: DeviceKernels) -> Both:
    graphs, sizes = Replayer(), sizes_of(loaded)
    device = DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), graphs, sizes)
    return Both(ModelRunner(loaded.model, ReferenceKernels(), sizes), device, graphs)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # padding rows hold what was in the memory
def test_prompts_drafts_and_decoded_tokens(loaded: LoadedModel) -> None:
    both, config = both_of(loaded, ReferenceKernels()), loaded.model.config
    whole, part, wide = drawn(config, 3, 1), drawn(config, 4, 2, without=FEW_LAYERS), drawn(config, 17, 3)
    both.add(20, whole)
    both.add(13, part, strength=-0.6)
    both.add(9)
    both.add(5, wide, whole)
    both.run((0, 19, 1), (2, 8, 1), (1, 7, 0))  # chunks of prompts, one without an adapter
    both.run((1, 6, 6), (3, 5, 2), (0, 1, 1))  # logits of several rows
    assert both.graphs.num_captures == 0
    for _ in range(2):
        both.run((0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1))
    both.run((2, 1, 1))  # nobody has an adapter
    both.run((3, 1, 1), (0, 1, 1), (1, 1, 1))  # other rows of the same graph
    both.run((1, 1, 1))  # an adapter that does not change the head
    assert (both.graphs.num_captures, both.graphs.num_replays) == (3, 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_the_triton_kernel_in_a_step(loaded: LoadedModel) -> None:
    both, config = both_of(loaded, TritonAdapters()), loaded.model.config
    both.add(12, drawn(config, 3, 1), strength=-0.6)
    both.add(3)
    both.add(2, drawn(config, 17, 2, without={2, 4}))
    both.run((0, 11, 0), (2, 1, 1), (1, 2, 0))
    both.run((2, 1, 1), (1, 1, 1), (0, 1, 1))


def test_graphs_of_steps_without_adapters_are_those_of_before(loaded: LoadedModel) -> None:
    both = both_of(loaded, ReferenceKernels())
    both.on_device.capture_graphs()
    num_captures = both.graphs.num_captures
    both.add(4)
    both.add(4, drawn(loaded.model.config, 2, 1))
    both.run((0, 3, 0), (1, 3, 0))
    both.run((0, 1, 1))
    assert both.graphs.num_captures == num_captures
    both.run((0, 1, 1), (1, 1, 1))
    assert both.graphs.num_captures == num_captures + 1


def test_a_kernel_that_the_reference_replaces_is_not_captured(loaded: LoadedModel) -> None:
    kernels = with_fallbacks(ReferenceKernels(), [Finding(ADD_LOW_RANK, "it does not compile")])
    both = both_of(loaded, kernels)
    both.add(4, drawn(loaded.model.config, 2, 1))
    both.add(4)
    both.run((0, 3, 0), (1, 3, 0))
    both.run((0, 1, 1), (1, 1, 1))
    assert both.graphs.num_captures == 0
    both.run((1, 1, 1))
    assert both.graphs.num_captures == 1


def test_a_graph_that_cannot_be_captured_fails_no_request(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = both_of(loaded, ReferenceKernels())
    both.add(4, drawn(loaded.model.config, 2, 1))
    both.run((0, 3, 0))

    def fails(_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(both.on_device, "_adapters_capture", fails)
    both.run((0, 1, 1))
    both.run((0, 1, 1))
    reason = "AcceleratorError: CUDA error: operation not permitted when stream is capturing"
    assert both.on_device.replaced_kernels == {"adapter_graphs": reason}
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["WARNING"]


def test_a_row_without_an_adapter_keeps_its_bits(loaded: LoadedModel) -> None:
    both = both_of(loaded, ReferenceKernels())
    for adapters in ((), (), (drawn(loaded.model.config, 8, 1, size=50.0),)):
        both.add(6, *adapters)
    both.run((0, 5, 0), (1, 5, 0), (2, 5, 0))
    chunks = [Chunk(device, 1, 1) for _, device in both.sequences]
    logits = [both.on_device.run([chunks[0], chunks[other]]).clone() for other in (1, 2)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert not torch.allclose(logits[0][1], logits[1][1])


class Engines:
    """An engine of a CPU and one with the runner of a GPU, and the same adapters in both."""

    def __init__(self, loaded: LoadedModel, sizes: EngineSizes, adapters: Sequence[LoadedAdapter]) -> None:
        self.loaded = loaded
        self.host = Engine(loaded, sizes=replace(sizes, num_blocks=200))
        self._draw = Random(1)
        self.device = Engine(loaded, sizes=sizes, make_runner=runner_on_cpu, on_step=self._preempt)
        runner = self.device._core.runner
        self.adapters = [(adapter, runner.prepare_adapter(adapter)) for adapter in adapters]

    def _preempt(self, stats: StepStats) -> None:
        """On the engine's thread: a lack of memory seldom does so amid an answer."""
        scheduler = self.device._core.scheduler
        if len(scheduler.running) > 1 and self._draw.random() < PREEMPTED:
            scheduler.preempt_youngest(Plan())

    def close(self) -> None:
        self.host.close()
        self.device.close()

    def pair(self, request: EngineRequest, numbers: Sequence[int], strength: float) -> list[EngineRequest]:
        """``request`` with the adapters ``numbers`` for both engines."""
        return [
            replace(request, adapters=applied(*(self.adapters[number][side] for number in numbers), strength=strength))
            for side in (0, 1)
        ]


@pytest.fixture(scope="module")
def engines(loaded: LoadedModel) -> Iterator[Engines]:
    config = loaded.model.config
    adapters = [drawn(config, rank, rank, without=FEW_LAYERS if rank % 2 else ()) for rank in (1, 2, 4, 5, 16, 20, 33)]
    engines = Engines(loaded, sizes_of(loaded, num_blocks=16), adapters)
    yield engines
    engines.close()


class SlowCopy:
    """``Copy`` whose copies are done after some steps."""

    def __init__(self) -> None:
        self.num_waits = 0

    def __call__(self, *arguments: Any) -> Any:
        copied, asked = copy_at_once(*arguments), iter(range(3))

        def is_done() -> bool:
            is_waiting = next(asked, None) is not None
            self.num_waits += is_waiting
            return not is_waiting

        return SimpleNamespace(is_done=is_done, before_next_step=copied.before_next_step)


def asked(loaded: LoadedModel, draw: Random, number: int) -> EngineRequest:
    given: dict[str, Any] = draw.choice(
        [
            {"do_sample": False},
            {"do_sample": True, "seed": number, "temperature": 1.2, "top_k": 40},
            {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
            {"do_sample": False, "prompt_lookup_num_tokens": 4},
            {"do_sample": False, "repetition_penalty": 1.3},
        ]
    )
    shared = list(range(5, 40))[: draw.choice([0, 16, 33])]  # a prefix that several have in common
    prompt = tuple(shared + [draw.randrange(VOCAB) for _ in range(draw.randint(1, 12))])
    return asking.request(loaded, f"r{number}", prompt=prompt, max_new_tokens=draw.randint(2, 20), **given)


def test_answers_are_those_of_the_cpu(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests with any adapters, many more than fit on the device or into the cache, join in the middle of others."""
    draw, copy = Random(7), SlowCopy()
    tier = engines.device._core.runner.adapters
    assert tier is not None
    monkeypatch.setattr(tier, "_copy", copy)
    pairs = []
    for number in range(40):
        numbers = draw.choice([(), (), *((index,) for index in range(7)), (0, 3), (4, 2, 1), (5, 0)])
        pairs.append(engines.pair(asked(engines.loaded, draw, number), numbers, draw.choice([1.0, 0.5, -1.0, 0.0])))
    expected = [asking.Answer(engines.host, host) for host, _ in pairs]
    found: list[asking.Answer] = []
    for start in range(0, len(pairs), 8):
        found += [asking.Answer(engines.device, device) for _, device in pairs[start : start + 8]]
        while engines.device.load.num_waiting > 4:
            time.sleep(0.001)
    for ours, theirs, (request, _) in zip(found, expected, pairs, strict=True):
        assert ours.ids() == theirs.ids(), request
    assert copy.num_waits > 10
    assert engines.device.statistics.num_preemptions > 5


def test_adapters_change_the_answer(engines: Engines) -> None:
    request = asking.request(engines.loaded, do_sample=False, max_new_tokens=12, min_new_tokens=12)
    answers = [
        asking.Answer(engines.device, engines.pair(request, numbers, strength)[1]).ids()
        for numbers, strength in (((), 1.0), ((4,), 1.0), ((4,), -1.0), ((5,), 1.0), ((4,), 0.0))
    ]
    assert answers[0] == answers[4]
    assert len({str(answer) for answer in answers}) == 4


def test_running_requests_keep_their_adapters_on_the_device(engines: Engines) -> None:
    """The third waits for the first two, and starts when one of them ends."""
    core = EngineCore(engines.loaded, sizes_of(engines.loaded), make_runner=runner_on_cpu)
    tier = core.runner.adapters
    assert tier is not None
    adapters = [core.runner.prepare_adapter(drawn(engines.loaded.model.config, 32, seed)) for seed in range(3)]
    generations: list[Generation] = []
    for number, adapter in enumerate(adapters):
        request = asking.request(engines.loaded, f"{number}", do_sample=False, max_new_tokens=6, min_new_tokens=6)
        generations.append(core.generation(replace(request, adapters=applied(adapter)), lambda event: None))
        core.scheduler.add(generations[-1])
    running = core.scheduler.running
    for _ in range(20):
        if generations[2] in running:
            break
        core.run(core.schedule())
        assert sum(adapter.number in tier._table for adapter in adapters) == 2
        assert all(g.request.adapters[0].adapter.number in tier._table for g in running)
    assert generations[2] in running
    assert generations[0].is_removed
    assert not core.scheduler.waiting


def test_a_request_whose_adapters_do_not_fit_is_refused(engines: Engines) -> None:
    request = asking.request(engines.loaded, do_sample=False)
    with pytest.raises(InvalidRequest, match=r"`adapters` take .* together on the device, which has"):
        engines.device.submit(engines.pair(request, (5, 6), 1.0)[1], lambda event: None)
    with pytest.raises(TypeError, match="was not loaded by this engine"):
        engines.device.submit(
            replace(request, adapters=(AppliedAdapter(SimpleNamespace(name="other"), 1.0),)),
            lambda event: None,
        )


def test_the_head_is_the_last_place(loaded: LoadedModel) -> None:
    assert places.head(loaded.model.config) == max(FEW_LAYERS)


def test_no_memory_is_taken_before_the_first_adapter(loaded: LoadedModel) -> None:
    engine = Engine(loaded, sizes=sizes_of(loaded), make_runner=runner_on_cpu)
    asking.Answer(engine, asking.request(loaded, do_sample=False, max_new_tokens=3)).ids()
    tier = engine._core.runner.adapters
    assert tier is not None
    assert not tier.has_pool
    engine.close()
