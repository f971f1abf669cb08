"""The forward pass and the graphs of the real models on tensors without memory.

Whatever would read a number from the device raises an error there, so a step and its graph never wait for a GPU. The
kernels are replaced by ones that check their arguments, as a GPU's need them.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from phi3_serve.bench.shapes import Model, build
from phi3_serve.engine.kernels.contract import PagedQueries
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner, graph_rows
from phi3_serve.engine.sampling.device_sampler import TorchChooser

SIZES = EngineSizes(num_blocks=1000, token_budget=2048, max_rows=256)
VOCAB = 32_064


class CheckedKernels:
    """``contract.DeviceKernels`` that compute nothing."""

    name = "checked"
    replaced: Mapping[str, str] = {}
    queries_per_tile = (8, 128)

    def __init__(self, config: object) -> None:
        self.config = config
        self.calls: list[str] = []
        self.queries: list[PagedQueries] = []

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        self._check(hidden, delta, weight)
        assert hidden.shape == delta.shape
        assert weight.shape == hidden.shape[1:]
        self.calls.append("add_rms_norm")
        return torch.empty_like(hidden)

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: Tensor) -> None:
        self._check(qkv, *rotation, cache)
        assert slots.dtype == torch.int32
        assert slots.shape == qkv.shape[:1]
        assert all(part.shape == (len(qkv), 1, qkv.shape[2]) for part in rotation)
        self.calls.append("rotate_and_store")

    def silu_product(self, gate_up: Tensor) -> Tensor:
        self._check(gate_up)
        self.calls.append("silu_product")
        return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)

    def attend(self, qkv: Tensor, cache: Tensor, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        self._check(qkv, cache)
        parts = (queries.sequences, queries.block_tables, queries.short_tiles, queries.long_tiles)
        assert all(part.dtype == torch.int32 and part.is_contiguous() for part in parts)
        self.calls.append("attend")
        self.queries.append(queries)
        return qkv.new_empty(len(qkv), (qkv.shape[1] - len(cache)) * qkv.shape[2])

    @staticmethod
    def _check(*tensors: Tensor) -> None:
        for tensor in tensors:
            assert tensor.is_meta
            assert tensor.dtype == torch.bfloat16
            assert tensor.is_contiguous()


@pytest.fixture(params=["mini", "medium"])
def runner(request: pytest.FixtureRequest) -> DeviceRunner:
    model = build(Model(request.param, "meta", torch.bfloat16))
    kernels = CheckedKernels(model.config)
    return DeviceRunner(Decoder(model, kernels), kernels, TorchChooser(), lambda run: _Captured(run), SIZES)


class _Captured:
    """A graph: the result of the run that was captured."""

    def __init__(self, run: object) -> None:
        assert callable(run)
        self.result: Tensor = run()

    def __call__(self) -> Tensor:
        return self.result


def chunk(start: int, num_tokens: int, num_logits: int) -> Chunk:
    sequence = CachedSequence([5] * (start + num_tokens))
    sequence.block_table.extend(range(-(-(start + num_tokens) // 16)))
    sequence.num_cached = start
    return Chunk(sequence, num_tokens, num_logits)


def kernels_of(runner: DeviceRunner) -> CheckedKernels:
    assert isinstance(runner.kernels, CheckedKernels)
    return runner.kernels


def test_every_graph_is_captured(runner: DeviceRunner) -> None:
    runner.capture_graphs()
    kernels = kernels_of(runner)
    num_layers = runner.decoder.config.num_hidden_layers
    assert len(graph_rows(256)) == 17
    assert kernels.calls.count("attend") == kernels.calls.count("silu_product") == 17 * num_layers
    assert kernels.calls.count("add_rms_norm") == 17 * (2 * num_layers + 1)
    assert len(kernels.calls) == 17 * (5 * num_layers + 1)
    assert {len(queries.short_tiles) for queries in kernels.queries} == set(graph_rows(256))
    assert all(not len(queries.long_tiles) for queries in kernels.queries)


@pytest.mark.parametrize(("rows", "graph"), [(1, 1), (3, 4), (33, 48), (225, 256), (256, 256)])
def test_decoded_tokens_take_the_next_larger_graph(runner: DeviceRunner, rows: int, graph: int) -> None:
    logits = runner.run([chunk(40 + row, 1, 1) for row in range(rows)])
    assert (logits.shape, logits.dtype) == ((rows, VOCAB), torch.bfloat16)
    assert len(kernels_of(runner).queries[0].sequences) == graph
    before = len(kernels_of(runner).calls)
    runner.run([chunk(40, 1, 1)] * rows)
    assert len(kernels_of(runner).calls) == before  # replayed


@pytest.mark.parametrize(
    ("chunks", "num_logits", "short", "long"),
    [
        ([(0, 2048, 1)], 1, 0, 16),
        ([(0, 2048, 0)], 0, 0, 16),
        ([(1000, 9, 1), (30, 8, 8), (5, 1, 1)], 10, 2, 1),
        ([(0, 1, 1)] * 257, 257, 257, 0),  # one request may have more rows than there are graphs for
    ],
)
def test_other_steps(
    runner: DeviceRunner, chunks: list[tuple[int, int, int]], num_logits: int, short: int, long: int
) -> None:
    logits = runner.run([chunk(*one) for one in chunks])
    assert logits.shape == (num_logits, VOCAB)
    queries = kernels_of(runner).queries[0]
    assert (len(queries.sequences), len(queries.short_tiles), len(queries.long_tiles)) == (len(chunks), short, long)
