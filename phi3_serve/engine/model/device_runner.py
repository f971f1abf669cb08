"""Runs the steps of the engine on a device that works on while the host plans the next step.

A step is one small copy to the device, the forward pass and one small copy back. A step that decodes one token of each
sequence, or runs a short prompt alone, is the replay of a CUDA graph, because launching its hundreds of kernels takes
longer than they run.
"""

import logging
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phi3_serve.engine.adapters import places
from phi3_serve.engine.adapters.device_tier import DeviceTier, StreamCopy, copy_at_once
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.page_table import Mix
from phi3_serve.engine.adapters.pages import PagedAdapter
from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels.contract import (
    ADD_LOW_RANK,
    MAX_PAGES,
    MAX_SHORT_QUERIES,
    ROWS_PER_TILE,
    AdaptedTiles,
    DeviceKernels,
    PagedQueries,
)
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder, StepInputs, new_cache, sliding_window
from phi3_serve.engine.model.runner import logit_rows
from phi3_serve.engine.model.step_buffer import StepBuffer, StepIntegers, StepShape, pack, pack_decode, pack_prompt
from phi3_serve.engine.sampling.device_sampler import DeviceSampler, TokenChooser

logger = logging.getLogger("phi3_serve")

Replay = Callable[[], Tensor]  # runs a captured function again; the result is always the same tensor
Capture = Callable[[Callable[[], Tensor]], Replay]

# Tokens that graphs of prompts are captured for. On an H100 a longer prompt of mini takes longer than its launches, and
# the padding costs less than they do. On a slower card, such as a T4 or an L4, the padding may cost more.
PROMPT_TOKENS = (64, 128, 192, 256, 384, 512)
INTEGERS_PER_TOKEN = 8  # at most: four of the token, and its share of logit rows and tiles
INTEGERS_PER_ROW = 6
ADAPTER_INTEGERS_PER_ROW = 5 + 2 * MAX_PAGES  # at most, in a step that is a graph: a row, a tile and its pages


def graph_rows(max_rows: int) -> list[int]:
    """The numbers of rows that graphs are captured for: 1, 2, 4, then steps of an eighth to a half."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224]
    return [*(size for size in sizes if size < max_rows), max_rows]


@dataclass(frozen=True, slots=True)
class _DeviceAttention:
    """``contract.AttentionPlan`` over tensors on the device."""

    kernels: DeviceKernels
    queries: PagedQueries
    window: int | None

    def attend(self, qkv: Tensor, cache: KvCache, scale: float) -> Tensor:
        """See ``contract.AttentionPlan``."""
        return self.kernels.attend(qkv, cache, self.queries, scale, self.window)


@dataclass(frozen=True, slots=True)
class _DeviceAdapters:
    """``contract.AdapterPlan`` over tensors on the device."""

    kernels: DeviceKernels
    tier: DeviceTier
    tiles: AdaptedTiles
    places: frozenset[int] | None  # the linear layers that an adapter of the step changes; None: any

    def add(self, place: int, x: Tensor, output: Tensor) -> None:
        """See ``contract.AdapterPlan``."""
        if self.places is None or place in self.places:
            self.kernels.add_low_rank(x, output, self.tier.change(place), self.tiles)


class DeviceRunner:
    """A model, its key-value cache, and the graphs of its steps."""

    def __init__(
        self,
        decoder: Decoder,
        kernels: DeviceKernels,
        chooser: TokenChooser,
        capture: Capture,
        sizes: EngineSizes,
    ) -> None:
        """Prepare to run ``decoder``.

        Args:
            decoder: the model.
            kernels: for the model's device.
            chooser: of the tokens that the device chooses.
            capture: makes the graphs, for example ``CudaGraphs``.
            sizes: of the cache and of the steps. There are graphs for up to ``max_rows`` sequences.
        """
        max_rows, num_blocks = sizes.max_rows, sizes.num_blocks
        self.sizes = sizes
        self.decoder = decoder
        self._chosen = torch.zeros(max_rows, dtype=torch.int32, device=decoder.device)  # tokens of the last step
        self.sampler = DeviceSampler(self._chosen, chooser, decoder.config.vocab_size)
        self.kernels = kernels
        self._window = sliding_window(decoder.config)
        self._cache = new_cache(decoder, num_blocks, sizes.kv_cache_dtype)
        tokens = max(sizes.token_budget, max_rows)
        self._buffer = StepBuffer(
            decoder.device,
            tokens * INTEGERS_PER_TOKEN
            + max_rows * (INTEGERS_PER_ROW + ADAPTER_INTEGERS_PER_ROW)
            + max(2 * num_blocks, max_rows),
        )
        self._capture = capture
        self._adapters_capture = without_graphs if ADD_LOW_RANK in kernels.replaced else capture
        self._graph_rows = graph_rows(max_rows)
        sizes_of_prompts = () if capture is without_graphs else PROMPT_TOKENS
        self._prompt_shapes = [
            StepShape.of_prompt(size, kernels.queries_per_tile[1])
            for size in sizes_of_prompts
            if size <= sizes.token_budget
        ]
        self._graphs: dict[StepShape, Replay] = {}
        self._without_graphs: dict[str, str] = {}  # the kinds of steps whose graphs have failed, and the reasons
        copy = StreamCopy(decoder.device) if decoder.device.type == "cuda" else copy_at_once
        self.adapters = DeviceTier(decoder.config, decoder.dtype, decoder.device, sizes.adapter_bytes, copy)
        self._head = places.head(decoder.config)

    @property
    def cuda_graphs(self) -> bool:
        """See ``EngineInfo``."""
        return self._capture is not without_graphs

    @property
    def flash_attention(self) -> str:
        """See ``EngineInfo``."""
        return self.kernels.flash_attention

    @property
    def replaced_kernels(self) -> dict[str, str]:
        """All kernels and graphs that slower ones replace, and the reasons.

        It is complete after ``warm_up``, but for the graphs of steps with adapters, which are captured later.
        """
        return {**self.kernels.replaced, **self.decoder.replaced, **self.sampler.replaced, **self._without_graphs}

    def check_device(self) -> None:
        """Wait for the device.

        Raises:
            AcceleratorError: an error that stays, for example after a failed assertion. Libraries report such errors as
                any RuntimeError.
        """
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        """Give the memory that torch keeps for later back to the device, so that larger pieces can be allocated."""
        if self.decoder.device.type == "cuda":
            torch.cuda.empty_cache()

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy the keys and values of whole blocks, (from, to); see ``KvCache.copy_blocks``."""
        self._cache.copy_blocks(pairs)

    def prepare_adapter(self, loaded: LoadedAdapter) -> PagedAdapter:
        """``loaded`` in the form that the device copies. It may be called on any thread.

        The first call compiles the kernel for the sizes of all linear layers, so that no step waits for that.

        Raises:
            MemoryFull: see ``DeviceTier.prepare``.
        """
        is_first = not self.adapters.has_pool
        prepared = self.adapters.prepare(loaded)
        if is_first:
            self._compile_for_adapters()
        return prepared

    @torch.inference_mode()
    def _compile_for_adapters(self) -> None:
        """Run the kernel on one row of zeros with a strength of 0."""
        integers = torch.zeros(4, dtype=torch.int32, device=self.decoder.device)
        one = integers[:1] + 1
        tile = torch.tensor([[0, 1, 0, 1]], dtype=torch.int32, device=self.decoder.device)
        for rows_per_tile in ROWS_PER_TILE:
            tiles = AdaptedTiles(integers, one, tile, integers.view(2, 2), rows_per_tile, pages_per_tile=1)
            for place in (*range(len(places.LAYERS)), self._head):
                change = self.adapters.change(place)
                x, output = (change.a.new_zeros(1, matrix.shape[2]) for matrix in (change.a, change.b))
                self.kernels.add_low_rank(x, output, change, tiles)

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture the graphs of steps without adapters, the largest first, so that the others fit into its memory.

        If the graph of a prompt cannot be captured or replayed, prompts have none. If that of a decode step cannot, no
        step has one.

        Raises:
            RuntimeError: the device has no memory for the graph of a decode step, or has failed.
        """
        paddings = [(StepShape.of_decode(rows), pack_decode([], rows)) for rows in self._graph_rows]
        nothing = chunk_of_block_0(0, num_logits=0)
        paddings += [(shape, self._pack_prompt(nothing, shape)) for shape in self._prompt_shapes]
        for shape, integers in sorted(paddings, key=lambda padding: padding[0].tokens, reverse=True):
            self._buffer.fill(integers)
            if not shape.long_tiles:
                self._capture_decode(shape)
            elif self._prompt_shapes:
                self._capture_prompt(shape)

    def _capture_decode(self, shape: StepShape) -> None:
        try:
            self._graph(shape)
        except Exception as error:
            if kind_of(error) == "memory":
                raise  # because those of a smaller engine may fit
            self._do_without_graphs("decode_graphs", error)
            self._capture = self._adapters_capture = without_graphs
            self._prompt_shapes = []

    def _capture_prompt(self, shape: StepShape) -> None:
        """Graphs that are captured already stay, because the others use their memory."""
        try:
            self._graph(shape)
        except Exception as error:
            self._do_without_graphs("prompt_graphs", error)
            self._prompt_shapes = []

    def _do_without_graphs(self, name: str, error: Exception) -> None:
        """Note that steps of a kind are launched kernel by kernel, if the device can go on at all."""
        self.check_device()
        problem = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        logger.warning("The CUDA graphs %s are not used: %s", name, problem)
        self._without_graphs[name] = problem

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile all kernels of steps without adapters, so that no request waits for it.

        Graphs have compiled theirs when they were captured. A prompt without a graph compiles them here. A short prompt
        and the longest one share the keys among programs in different ways.
        """
        for rows in self._graph_rows:
            self._buffer.fill(pack_decode([], rows))
            self._graph(StepShape.of_decode(rows))()
        for num_tokens in (MAX_SHORT_QUERIES + 1, self.sizes.token_budget):
            logits = self.run([chunk_of_block_0(num_tokens, num_logits=1)])
        self.sampler.prepare(logits)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run ``chunks`` and return their logits, [sum of num_logits, vocabulary], in the same order.

        They are in the model's dtype. They are overwritten by the next call.
        """
        is_adapted = any(chunk.sequence.adapters for chunk in chunks)
        mixes = self.adapters.mixes(chunk.sequence.adapters for chunk in chunks) if is_adapted else None
        shape, integers = self._for_graph(chunks, mixes) or (None, ())
        if shape is not None and self._buffer.fits(len(integers)):
            self._buffer.fill(integers)
            return self._graph(shape)()[: sum(chunk.num_logits for chunk in chunks)]
        changed = _changed_places(chunks) if is_adapted else None
        shape, integers = pack(
            chunks,
            logit_rows(chunks),
            self.kernels,
            mixes,
            adapts_logits=changed is not None and self._head in changed,
        )
        return self._forward(StepIntegers.of(self._buffer.fill(integers), shape), changed)

    def _for_graph(self, chunks: Sequence[Chunk], mixes: Sequence[Mix] | None) -> tuple[StepShape, Any] | None:
        """The shape and the integers of a step that has a graph; None for other steps."""
        if len(chunks) <= self._graph_rows[-1] and all(_is_decoded(chunk) for chunk in chunks):
            rows = self._graph_rows[bisect_left(self._graph_rows, len(chunks))]
            return StepShape.of_decode(rows, is_adapted=mixes is not None), pack_decode(chunks, rows, mixes)
        chunk = chunks[0]
        is_alone = len(chunks) == 1 and chunk.num_logits <= 1 and mixes is None
        if not is_alone or self.kernels.gathers(chunk.num_tokens, chunk.end):
            return None
        shapes = (shape for shape in self._prompt_shapes if chunk.num_tokens <= shape.tokens)
        return next(((shape, self._pack_prompt(chunk, shape)) for shape in shapes), None)

    def _pack_prompt(self, chunk: Chunk, shape: StepShape) -> Any:
        return pack_prompt(chunk, shape, self.kernels.queries_per_tile[1])

    def _graph(self, shape: StepShape) -> Replay:
        if shape not in self._graphs:
            inputs = StepIntegers.of(self._buffer.on_device, shape)
            all_logits = shape.logits == shape.tokens
            capture = self._capture_adapted if shape.adapted else self._capture
            self._graphs[shape] = capture(lambda: self._forward(inputs, all_logits=all_logits))
        return self._graphs[shape]

    def _capture_adapted(self, run: Callable[[], Tensor]) -> Replay:
        """Requests are running already, so a graph that fails must not fail them."""
        try:
            return self._adapters_capture(run)
        except Exception as error:
            if kind_of(error) != "other":
                raise  # for example because a smaller step may fit
            self._do_without_graphs("adapter_graphs", error)
            self._adapters_capture = without_graphs
            return run

    def _forward(
        self, integers: StepIntegers, changed: frozenset[int] | None = None, *, all_logits: bool = False
    ) -> Tensor:
        """``changed``: the linear layers that adapters change; None: any, if a row has adapters."""
        adapted, adapted_logits = (
            None if tiles is None else _DeviceAdapters(self.kernels, self.adapters, tiles, changed)
            for tiles in (integers.adapted, integers.adapted if all_logits else integers.adapted_logits)
        )
        inputs = StepInputs(
            token_ids=self._read(integers.token_ids),
            positions=integers.positions,
            uses_long_factors=integers.uses_long_factors,
            slots=integers.slots,
            logit_rows=None if all_logits else integers.logit_rows,
            attention=_DeviceAttention(self.kernels, integers.queries, self._window),
            adapters=adapted,
            adapters_of_logits=adapted_logits,
        )
        return self.decoder.run(inputs, self._cache)

    def _read(self, ids: Tensor) -> Tensor:
        """``ids`` with the tokens of the last step in place of unread ones; see ``Chunk.token_ids``.

        A token that could not be chosen is -1. Its sequence fails as soon as the host reads it.
        """
        unread = self._chosen[(-1 - ids).clamp_(min=0)].clamp_(min=0)
        return torch.where(ids < 0, unread, ids)


def chunk_of_block_0(num_tokens: int, num_logits: int, start: int = 0) -> Chunk:
    """A chunk that no request has. All of its blocks are the first one of the cache, which must not be in use."""
    sequence = CachedSequence([0] * (start + num_tokens))
    sequence.block_table = array("i", [0]) * -(-(start + num_tokens) // BLOCK_SIZE)
    sequence.num_cached = start
    return Chunk(sequence, num_tokens, num_logits)


def _changed_places(chunks: Sequence[Chunk]) -> frozenset[int]:
    """The linear layers that an adapter of ``chunks`` changes."""
    adapters = {applied.adapter for chunk in chunks for applied in chunk.sequence.adapters}
    return frozenset().union(*(adapter.places for adapter in adapters if isinstance(adapter, PagedAdapter)))


def _is_decoded(chunk: Chunk) -> bool:
    return chunk.num_tokens == 1 and chunk.num_logits == 1


def without_graphs(run: Callable[[], Tensor]) -> Replay:
    """``Capture`` for kernels that cannot be captured, as those of the reference."""
    return run


class CudaGraphs:
    """``Capture`` by CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        """Run once to compile kernels and to create handles, then capture, and replay once.

        The first replay takes memory and may fail like a capture. Whoever does without a graph that fails has to know.
        """
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Another thread may load an adapter meanwhile, and allocate memory for it.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        graph.replay()
        torch.cuda.synchronize()
        self._pool = graph.pool()  # torch has no pool any more if the first graph of it has failed

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
