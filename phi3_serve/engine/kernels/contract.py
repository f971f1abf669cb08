"""The kernels that a forward pass needs between its linear layers, for any device.

``reference`` implements them with torch, ``cpu`` with C++, ``cuda`` with Triton. ``select`` picks the implementation of
a model. All of them round where modeling_phi3.py of transformers 5.23 rounds.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kvcache.chunk import Chunk

ATTEND = "attend"
ADD_LOW_RANK = "add_low_rank"
FLASH_ATTENTION = "flash_attention"  # torch's, for long chunks of prompts; ``ATTEND`` computes all of them, too
KERNELS = ("add_rms_norm", "rotate_and_store", "silu_product", ATTEND, ADD_LOW_RANK)
MAX_SHORT_QUERIES = 8  # tokens; a chunk of up to this many is a decoded token with its draft, or the rest of a prompt
PAGE_RANK = 16  # ranks of an adapter in a page on the device; the smallest side of a matrix product in Triton
MAX_PAGES = 16  # of the adapters of one row
ROWS_PER_TILE = (16, 64)  # with an adapter: of decoded tokens, and of a step with longer chunks


Bits = Literal[8, 4]
GROUP = 32  # inputs that share a scale in 4 bits
# The inputs of a group of a ``BlockedWeight``, and whether it has minima, by its bits.
BLOCKED_FORMS: Mapping[Bits, tuple[tuple[int, bool], ...]] = {
    4: ((32, True),),
    8: ((32, True), (32, False), (16, False)),
}


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] in ``bits`` bits: weight[o, i] = values[o, i] * scales[o, i // inputs of a scale].

    In 8 bits all inputs of an output share a scale, in 4 bits each ``GROUP`` of them, the last group may be shorter.
    """

    bits: Bits
    values: Tensor  # int8 [out, in], from -127 to 127 or from -8 to 7
    scales: Tensor  # float32 [out, 1], or bfloat16, float16 or float32 [out, groups]

    @property
    def num_bytes(self) -> int:
        """What it takes in memory as it is here, with a byte for each value."""
        return self.values.nbytes + self.scales.nbytes

    def rows(self, outputs: Tensor) -> Self:
        """The weight of some outputs, given by their numbers [...]."""
        return type(self)(self.bits, self.values[outputs], self.scales[outputs])

    def to(self, device: torch.device) -> Self:
        """The weight on ``device``."""
        return type(self)(self.bits, self.values.to(device), self.scales.to(device))

    def dequantized(self) -> Tensor:
        """The weight in float32, [out, in]."""
        inputs = self.values.shape[-1]
        scales = self.scales.float().repeat_interleave(inputs if self.bits == 8 else GROUP, dim=-1)[..., :inputs]
        return scales.mul_(self.values)


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """A weight [out, in] in ``bits`` bits, whose inputs are in blocks, and those of a block in groups of 16 or 32.

    weight[o, i] = values[o, i] * scales[o, block] * steps[o, group] - minima[o, block] * minimum_steps[o, group].
    The last two are there if ``minima`` is. ``BLOCKED_FORMS`` has what kernels multiply by. Inputs are a multiple of a
    block and of 32. GGUF, GPTQ and AWQ have weights of this form.
    """

    bits: Bits
    values: Tensor  # int8 [out, in], from -128 to 127 or from 0 to 15
    scales: Tensor  # float16 [out, blocks]
    steps: Tensor  # int8 [out, groups]
    minima: Tensor | None = None  # float16 [out, blocks]
    minimum_steps: Tensor | None = None  # int8 [out, groups]

    @property
    def group(self) -> int:
        """Inputs of a group."""
        return self.values.shape[-1] // self.steps.shape[-1]

    @property
    def num_bytes(self) -> int:
        """What it takes in memory as it is here, with a byte for each value."""
        return sum(part.nbytes for part in self._parts if part is not None)

    def rows(self, outputs: Tensor) -> Self:
        """The weight of some outputs, given by their numbers [...]."""
        return type(self)(self.bits, *(None if part is None else part[outputs] for part in self._parts))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Self:
        """The weight on ``device``."""
        return type(self)(self.bits, *(None if part is None else part.to(device) for part in self._parts))  # type: ignore[arg-type]

    def dequantized(self) -> Tensor:
        """The weight in float32, [out, in]."""
        weight = self._of_inputs(self.scales, self.steps).mul_(self.values)
        if self.minima is None or self.minimum_steps is None:
            return weight
        return weight.sub_(self._of_inputs(self.minima, self.minimum_steps))

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.values, self.scales, self.steps, self.minima, self.minimum_steps

    def _of_inputs(self, of_blocks: Tensor, steps: Tensor) -> Tensor:
        groups = of_blocks.float().repeat_interleave(steps.shape[-1] // of_blocks.shape[-1], dim=-1) * steps
        return groups.repeat_interleave(self.group, dim=-1)


Weight = QuantizedWeight | BlockedWeight


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight [out, in] in float8: weight[o, i] = values[o, i] * scales[o]."""

    values: Tensor  # float8_e4m3fn [out, in]
    scales: Tensor  # float32 [out, 1]

    def to(self, device: torch.device) -> Self:
        """The weight on ``device``."""
        return type(self)(self.values.to(device), self.scales.to(device))

    def dequantized(self) -> Tensor:
        """The weight in float32, [out, in]."""
        return self.values.float().mul_(self.scales)


def quantized_bytes(outputs: int, inputs: int, bits: Bits) -> int:
    """Bytes of a weight [outputs, inputs] in ``bits`` bits and of its scales."""
    scales = outputs * 4 if bits == 8 else outputs * -(-inputs // GROUP) * 2
    return outputs * inputs * bits // 8 + scales


class PackedWeight(Protocol):
    """A ``Weight`` or ``Fp8Weight`` in the form that kernels read."""

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""

    def multiply(self, x: Tensor) -> Tensor:
        """``x`` [rows, in] times the transposed weight, [rows, out], in the dtype of ``x``; sums are float32.

        On a CPU a row's result does not depend on the other rows. On a GPU the order of the sums depends on the number
        of rows. There a ``Weight`` is rounded to the dtype of ``x``. For an ``Fp8Weight`` on any device, ``x`` is
        rounded to float8 as the weight is: each row with a scale of its own.
        """

    def unpacked(self) -> Weight | Fp8Weight:
        """The weight that was packed."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter (LoRA) adds to a linear layer: ``scaling * strength * B A x``, with a strength of each row.

    Both matrices are contiguous, in the main memory, and have the dtype that the model computes in.
    """

    a: Tensor  # [rank, in]
    b: Tensor  # [rank, out], B transposed, so that kernels read both matrices in the order of memory
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of both matrices."""
        return len(self.a)


class LowRankAdapter(Protocol):
    """What an adapter adds to all linear layers of a model. Two are the same adapter if they are the same object."""

    @property
    def changes(self) -> Sequence[LowRank | None]:
        """By the number of the linear layer, see ``adapters.places``; None: the adapter leaves it as it is."""


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Rows [first, end) of a batch, which use the same adapters with the same strengths; their changes add up.

    The ranks of the adapters together are at most 256.
    """

    first: int
    end: int
    adapters: tuple[tuple[LowRankAdapter, float], ...]  # at least one; the float is the strength


class AdapterPlan(Protocol):
    """Which rows of one step use which adapters: made once a step, followed in every layer."""

    def add(self, place: int, x: Tensor, output: Tensor) -> None:
        """Add the adapters' products to the output of one linear layer, in place.

        Sums are float32 and rounded once. Rows without an adapter are not read or written. On a CPU a row's result does
        not depend on the other rows.

        Args:
            place: the number of the linear layer, see ``adapters.places``.
            x: its input, [rows, in], contiguous.
            output: [rows, out], contiguous, in the dtype of ``x``.
        """


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """A query and the keys that it sees: positions [first, end) of the sequence with ``block_table``."""

    query: int  # its row in the batch
    block_table: "array[int]"  # block numbers, int32; must not change while the step runs
    first: int
    end: int


class RowAttention(Protocol):
    """Attention of single queries over the paged cache, prepared once a step and called in every layer."""

    def attend(self, query: Tensor, cache: KvCache, output: Tensor, scale: float) -> None:
        """Write the softmax attention of each row into its row of ``output``; other rows are unchanged.

        Args:
            query: [tokens, heads, dim]; the heads of one token are contiguous.
            cache: of one layer. ``heads`` is a multiple of its heads.
            output: [tokens, heads, dim].
            scale: multiplies the products of queries and keys.
        """


class AttentionPlan(Protocol):
    """Which queries see which keys in one step: made once a step, followed in every layer."""

    def attend(self, qkv: Tensor, cache: KvCache, scale: float) -> Tensor:
        """Softmax attention of all queries of a step.

        Args:
            qkv: [tokens, heads + 2 * kv_heads, dim]; ``heads`` is a multiple of ``kv_heads``.
            cache: of one layer; the keys and values of ``qkv`` are already stored in it. In 8 bits, a query sees all of
                them as they are stored, so that the borders of chunks change no answer. In the C++ kernels for
                float32 these borders, and other sequences, change no bit of finite numbers.
            scale: multiplies the products of queries and keys.

        Returns:
            [tokens, heads * dim]; anything, also nan, for tokens that belong to no chunk.
        """


class LayerKernels(Protocol):
    """The kernels of a layer besides attention. All tensors but a cache in 8 bits have one dtype and are contiguous."""

    name: str  # of the implementation, for operators
    replaced: Mapping[str, str]  # kernels in whose place slower ones compute, and the reasons

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Add ``delta`` to ``hidden`` [tokens, width] in place; returns the RMS norm of the sum times ``weight``."""

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        """Rotate queries and keys in place, and store keys and values in the cache.

        Args:
            qkv: [tokens, heads + 2 * kv_heads, dim]: queries, keys, values.
            rotation: cosine and signed sine, [tokens, 1, rotary dimensions]; see ``model.rope``. Dimensions beyond
                the rotary ones are not rotated.
            slots: int64, or int32 on a GPU; the cache slot of each token. Tokens beyond them are padding and are not
                stored. On a GPU, tokens with slot -1 are not stored, too.
            cache: of one layer.
        """

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for the two halves of ``gate_up`` [tokens, 2 * width]."""


class WeightKernels(Protocol):
    """The kernels of linear layers with weights of fewer bits."""

    def pack(self, weight: Weight) -> PackedWeight:
        """``weight`` in the form that these kernels multiply by, on its device. It may be needed in any dtype."""

    def pack_fp8(self, weight: Fp8Weight) -> PackedWeight:
        """The same for a weight in float8."""


class AdapterKernels(Protocol):
    """The kernels of adapters."""

    def plan_adapters(self, rows: Sequence[AdaptedRows]) -> AdapterPlan:
        """Plan the adapters of one step. Each row of the batch is in at most one of ``rows``."""


class Kernels(LayerKernels, WeightKernels, AdapterKernels, Protocol):
    """The kernels of a device whose steps are planned on the host."""

    def plan_attention(self, chunks: Sequence[Chunk], *, window: int | None, cache: KvCache) -> AttentionPlan:
        """Plan the attention of one step.

        Args:
            chunks: in the order of their tokens in the batch.
            window: how many keys a query sees, its own included; None: all.
            cache: of all layers or of one; has the dtype and the device of those that the plan is followed with.
        """


@dataclass(frozen=True, slots=True)
class GatheredQueries:
    """The queries of a chunk of a prompt that is in no tile. The host knows these numbers."""

    row: int  # the first one of the batch
    num_queries: int
    end: int  # the position after the last query
    table: int  # the first entry in block_tables


@dataclass(frozen=True, slots=True)
class PagedQueries:
    """The queries of one step and the blocks of their keys, as int32 tensors on the device.

    Shapes do not depend on the lengths of the sequences, so that a CUDA graph can be captured over these tensors.
    """

    sequences: Tensor  # [sequences, 4]: first row of the batch, number of queries, end, first entry in block_tables
    block_tables: Tensor  # block numbers of all sequences, one sequence after another
    short_tiles: Tensor  # [tiles, 2]: sequence, first query of the tile; tiles of at most MAX_SHORT_QUERIES queries
    long_tiles: Tensor  # [tiles, 2]: the same for the chunks of prompts
    gathered: tuple[GatheredQueries, ...] = ()  # chunks that are in no tile; see ``DeviceKernels.gathers``


@dataclass(frozen=True, slots=True)
class PagedLowRank:
    """What the adapters on a device add to one linear layer; see ``LowRank``. The matrices of a page are contiguous."""

    a: Tensor  # [pages, PAGE_RANK, in], in the dtype that the model computes in
    b: Tensor  # [pages, PAGE_RANK, out]
    scalings: Tensor  # [pages], float32; 0: the page does not change this layer, and its matrices are not read


@dataclass(frozen=True, slots=True)
class AdaptedTiles:
    """The rows of one step that have adapters, as int32 tensors on the device.

    A tile has rows with the same adapters and strengths; they need not be neighbours in the batch. Shapes do not depend
    on which rows have adapters, so that a CUDA graph can be captured over these tensors.
    """

    rows: Tensor  # rows of the batch, those of one tile after another
    num_tiles: Tensor  # [1]; tiles beyond them are padding
    tiles: Tensor  # [tiles, 4]: first of rows, number of rows, first of pages, number of pages
    pages: Tensor  # [pages, 2]: the number of a page, and the bits of the strength in float32
    rows_per_tile: int  # at most; a power of two of at least 16
    pages_per_tile: int  # at most


class DeviceKernels(LayerKernels, Protocol):
    """The kernels of a device that reads the plan of a step from its own memory."""

    queries_per_tile: tuple[int, int]  # of short and of long tiles
    flash_attention: str  # see ``EngineInfo``

    def gathers(self, num_queries: int, num_keys: int) -> bool:
        """Whether ``attend`` takes a chunk of a prompt from ``PagedQueries.gathered``, and not from tiles."""

    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        """Add the adapters' products to the output of one linear layer, in place; see ``AdapterPlan.add``.

        The order of a row's sums depends on the number of tiles. What is no number stays in its row.
        """

    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        """Softmax attention of all queries of a step; see ``AttentionPlan.attend``."""
