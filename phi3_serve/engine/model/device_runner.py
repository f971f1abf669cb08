"""Runs the steps of the engine on a device that works on while the host plans the next step.

A step is one small copy to the device, the forward pass and one small copy back. A step that decodes one token of each
sequence is the replay of a CUDA graph, because launching its hundreds of kernels takes longer than they run.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import DeviceKernels, PagedQueries
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder, StepInputs, copy_blocks, new_cache, sliding_window
from phi3_serve.engine.model.runner import logit_rows
from phi3_serve.engine.model.step_buffer import StepBuffer, StepIntegers, StepShape, pack, pack_decode
from phi3_serve.engine.sampling.device_sampler import DeviceSampler, TokenChooser

Replay = Callable[[], Tensor]  # runs a captured function again; the result is always the same tensor
Capture = Callable[[Callable[[], Tensor]], Replay]

INTEGERS_PER_TOKEN = 8  # at most: four of the token, and its share of logit rows and tiles
INTEGERS_PER_ROW = 6


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

    def attend(self, qkv: Tensor, cache: Tensor, scale: float) -> Tensor:
        """See ``contract.AttentionPlan``."""
        return self.kernels.attend(qkv, cache, self.queries, scale, self.window)


class DeviceRunner:
    """A model, its key-value cache, and the graphs of its decode steps."""

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
        self.sampler = DeviceSampler(self._chosen, chooser)
        self.kernels = kernels
        self._window = sliding_window(decoder.config)
        self._cache = new_cache(decoder, num_blocks)
        tokens = max(sizes.token_budget, max_rows)
        self._buffer = StepBuffer(
            decoder.device,
            tokens * INTEGERS_PER_TOKEN + max_rows * INTEGERS_PER_ROW + max(2 * num_blocks, max_rows),
        )
        self._capture = capture
        self._graph_rows = graph_rows(max_rows)
        self._graphs: dict[int, Replay] = {}

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
        """Copy the keys and values of whole blocks, (from, to). All are read before any is written."""
        copy_blocks(self._cache, pairs)

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture all graphs, the largest first, so that the others fit into its memory."""
        for rows in reversed(self._graph_rows):
            self._buffer.fill(pack_decode([], rows))
            self._graph(rows)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run ``chunks`` and return their logits, [sum of num_logits, vocabulary], in the same order.

        They are in the model's dtype. They are overwritten by the next call.
        """
        if len(chunks) <= self._graph_rows[-1] and all(_is_decoded(chunk) for chunk in chunks):
            rows = self._graph_rows[bisect_left(self._graph_rows, len(chunks))]
            integers = pack_decode(chunks, rows)
            if self._buffer.fits(len(integers)):
                self._buffer.fill(integers)
                return self._graph(rows)()[: len(chunks)]
        wanted = logit_rows(chunks)
        shape, integers = pack(chunks, wanted, self.kernels.queries_per_tile)
        return self._forward(StepIntegers.of(self._buffer.fill(integers), shape))

    def _graph(self, rows: int) -> Replay:
        if rows not in self._graphs:
            inputs = StepIntegers.of(self._buffer.on_device, StepShape.of_decode(rows))
            self._graphs[rows] = self._capture(lambda: self._forward(inputs, all_logits=True))
        return self._graphs[rows]

    def _forward(self, integers: StepIntegers, *, all_logits: bool = False) -> Tensor:
        inputs = StepInputs(
            token_ids=self._read(integers.token_ids),
            positions=integers.positions,
            uses_long_factors=integers.uses_long_factors,
            slots=integers.slots,
            logit_rows=None if all_logits else integers.logit_rows,
            attention=_DeviceAttention(self.kernels, integers.queries, self._window),
        )
        return self.decoder.run(inputs, self._cache)

    def _read(self, ids: Tensor) -> Tensor:
        """``ids`` with the tokens of the last step in place of unread ones; see ``Chunk.token_ids``.

        A token that could not be chosen is -1. Its sequence fails as soon as the host reads it.
        """
        unread = self._chosen[(-1 - ids).clamp_(min=0)].clamp_(min=0)
        return torch.where(ids < 0, unread, ids)


def _is_decoded(chunk: Chunk) -> bool:
    return chunk.num_tokens == 1 and chunk.num_logits == 1


class CudaGraphs:
    """``Capture`` by CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        """Run once to compile kernels and to create handles, then capture."""
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
