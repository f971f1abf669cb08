"""The forward pass and the graphs of the real models on tensors without memory.

Whatever would read a number from the device raises an error there, so a step and its graph never wait for a GPU. The
kernels are replaced by ones that check their arguments, as a GPU's need them.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from phi3_serve.bench.shapes import Model, build
from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.engine.adapters import places
from phi3_serve.engine.adapters.pages import PageLayout
from phi3_serve.engine.kernels import flash_attention
from phi3_serve.engine.kernels.contract import (
    AdaptedTiles,
    BlockedWeight,
    GatheredQueries,
    PagedLowRank,
    PagedQueries,
    QuantizedWeight,
)
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import PROMPT_TOKENS, DeviceRunner, graph_rows, without_graphs
from phi3_serve.engine.quantization import QuantizedEmbedding
from phi3_serve.engine.sampling.device_sampler import TorchChooser
from tests.engine.adapters.drawing import applied, drawn

SIZES = EngineSizes(num_blocks=1000, token_budget=2048, max_rows=256)
VOCAB = 32_064
LONG = 20_000  # tokens, from which on keys are gathered


class CheckedKernels:
    """``contract.DeviceKernels`` that compute nothing."""

    name = "checked"
    replaced: Mapping[str, str] = {}
    queries_per_tile = (8, 128)
    flash_attention = ""

    def __init__(self, config: object) -> None:
        self.config = config
        self.calls: list[str] = []
        self.queries: list[PagedQueries] = []
        self.tiles: list[AdaptedTiles] = []

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        self._check(hidden, delta, weight)
        assert hidden.shape == delta.shape
        assert weight.shape == hidden.shape[1:]
        self.calls.append("add_rms_norm")
        return torch.empty_like(hidden)

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        self._check(qkv, *rotation, cache.values)
        assert slots.dtype == torch.int32
        assert slots.shape == qkv.shape[:1]
        assert all(part.shape == (len(qkv), 1, qkv.shape[2]) for part in rotation)
        self.calls.append("rotate_and_store")

    def silu_product(self, gate_up: Tensor) -> Tensor:
        self._check(gate_up)
        self.calls.append("silu_product")
        return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)

    def gathers(self, num_queries: int, num_keys: int) -> bool:
        return num_keys >= LONG

    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        self._check(qkv, cache.values)
        parts = (queries.sequences, queries.block_tables, queries.short_tiles, queries.long_tiles)
        assert all(part.dtype == torch.int32 and part.is_contiguous() for part in parts)
        self.calls.append("attend")
        self.queries.append(queries)
        heads = qkv.shape[1] - 2 * cache.num_kv_heads
        output = qkv.new_empty(len(qkv), heads, qkv.shape[2])
        for one in queries.gathered:
            flash_attention.attend(qkv[:, :heads], cache, output, queries.block_tables, one, scale=scale, window=window)
        return output.flatten(1)

    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        self._check(x, output, change.a[0], change.b[0])
        assert (change.a.shape[2], change.b.shape[2], len(x)) == (x.shape[1], output.shape[1], len(output))
        assert change.scalings.dtype == torch.float32
        parts = (tiles.rows, tiles.num_tiles, tiles.tiles, tiles.pages)
        assert all(part.is_meta and part.dtype == torch.int32 and part.is_contiguous() for part in parts)
        self.calls.append("add_low_rank")
        self.tiles.append(tiles)

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


def chunk(start: int, num_tokens: int, num_logits: int, adapters: tuple[AppliedAdapter, ...] = ()) -> Chunk:
    sequence = CachedSequence([5] * (start + num_tokens), adapters=adapters)
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
    count = 17 + len(PROMPT_TOKENS)
    assert kernels.calls.count("attend") == kernels.calls.count("silu_product") == count * num_layers
    assert kernels.calls.count("add_rms_norm") == count * (2 * num_layers + 1)
    assert len(kernels.calls) == count * (5 * num_layers + 1)
    tiles = {(len(queries.short_tiles), len(queries.long_tiles)) for queries in kernels.queries}
    assert tiles == {(rows, 0) for rows in graph_rows(256)} | {(0, -(-tokens // 128)) for tokens in PROMPT_TOKENS}
    assert runner.run([chunk(40, 30, 1)]).shape == (1, VOCAB)
    assert runner.run([chunk(40, 500, 0)]).shape == (0, VOCAB)
    assert len(kernels.calls) == count * (5 * num_layers + 1)  # replayed


def test_prompts_are_run_before_requests_come(runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest one, because a short one is a graph; and the kernel that chooses tokens gets logits as they will come."""
    prepared: list[Tensor] = []
    monkeypatch.setattr(runner.sampler, "prepare", prepared.append)
    runner.capture_graphs()
    kernels_of(runner).queries.clear()
    runner.warm_up()
    queries = kernels_of(runner).queries[:: runner.decoder.config.num_hidden_layers]
    assert [(len(step.short_tiles), len(step.long_tiles)) for step in queries] == [(0, 16)]
    assert [(logits.shape, logits.dtype) for logits in prepared] == [((1, VOCAB), torch.bfloat16)]


def test_decode_steps_without_graphs_are_run_before_requests_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph has compiled their kernels."""
    model = build(Model("mini:1", "meta", torch.bfloat16))
    kernels = CheckedKernels(model.config)
    runner = DeviceRunner(Decoder(model, kernels), kernels, TorchChooser(), without_graphs, SIZES)
    monkeypatch.setattr(runner.sampler, "prepare", lambda _: None)
    runner.capture_graphs()
    runner.warm_up()
    tiles = [(len(queries.short_tiles), len(queries.long_tiles)) for queries in kernels.queries]
    assert tiles == [*((rows, 0) for rows in graph_rows(256)), (0, 1), (0, 16)]


@pytest.mark.parametrize("has_blocks", [False, True])
def test_an_embedding_of_fewer_bits_waits_for_nothing(has_blocks: bool) -> None:
    with torch.device("meta"):
        values, scales = torch.empty(VOCAB, 3072, dtype=torch.int8), torch.empty(VOCAB, 12 if has_blocks else 1).half()
        steps = values[:, :96]
        weight = BlockedWeight(8, values, scales, steps) if has_blocks else QuantizedWeight(8, values, scales)
        found = QuantizedEmbedding(weight, torch.bfloat16)(torch.empty(5, dtype=torch.int32))
    assert (found.shape, found.dtype) == ((5, 3072), torch.bfloat16)


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
        ([(LONG, 1000, 1), (0, 8, 0), (LONG, 8, 1)], 2, 2, 0),
        ([(LONG, 1000, 1), (0, 20, 0), (LONG, 8, 1)], 2, 1, 9),
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
    is_long = any(start == LONG for start, *_ in chunks) and not long  # beside another long chunk it is in tiles
    assert queries.gathered == ((GatheredQueries(0, 1000, LONG + 1000, 0),) if is_long else ())


@pytest.mark.parametrize("shape", ["mini:2", "medium:1"])
def test_steps_with_adapters(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Model(shape, "meta", torch.bfloat16))
    kernels = CheckedKernels(model.config)
    page = PageLayout(model.config, torch.bfloat16).num_bytes
    sizes = replace(SIZES, adapter_bytes=2 * page)
    runner = DeviceRunner(Decoder(model, kernels), kernels, TorchChooser(), lambda run: _Captured(run), sizes)
    monkeypatch.setattr(runner.adapters, "_copy", lambda *_: SimpleNamespace(before_next_step=lambda: None))
    adapter = applied(runner.prepare_adapter(drawn(model.config, 1, 0, without={0, places.head(model.config)})))
    num_places = 4 * model.config.num_hidden_layers
    kernels.calls.clear()
    kernels.tiles.clear()
    for rows in (3, 4):  # two steps of one graph
        runner.run([chunk(40, 1, 1, adapter)] * rows)
    assert kernels.calls.count("add_low_rank") == num_places + 1  # any layer, and the head
    assert {(len(tiles.rows), len(tiles.tiles), tiles.rows_per_tile) for tiles in kernels.tiles} == {(4, 4, 16)}
    kernels.tiles.clear()
    runner.run([chunk(0, 100, 1, adapter), chunk(0, 200, 1), chunk(9, 1, 1, adapter)])
    assert len(kernels.tiles) == num_places - 1  # those that the adapter changes
    assert {(len(tiles.rows), len(tiles.tiles), tiles.rows_per_tile) for tiles in kernels.tiles} == {(101, 2, 64)}
    kernels.tiles.clear()
    runner.run([chunk(LONG, 100, 0, adapter)])
    assert {tiles.rows_per_tile for tiles in kernels.tiles} == {64}
