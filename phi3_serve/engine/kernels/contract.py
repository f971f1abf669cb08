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

from phi3_serve.engine.kvcache.chunk import Chunk

KERNELS = ("add_rms_norm", "rotate_and_store", "silu_product", "attend")
MAX_SHORT_QUERIES = 8  # tokens; a chunk of up to this many is a decoded token with its draft, or the rest of a prompt


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


def quantized_bytes(outputs: int, inputs: int, bits: Bits) -> int:
    """Bytes of a weight [outputs, inputs] in ``bits`` bits and of its scales."""
    scales = outputs * 4 if bits == 8 else outputs * -(-inputs // GROUP) * 2
    return outputs * inputs * bits // 8 + scales


class PackedWeight(Protocol):
    """A ``Weight`` in the form that kernels read."""

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""

    def multiply(self, x: Tensor) -> Tensor:
        """``x`` [rows, in] times the transposed weight, [rows, out], in the dtype of ``x``; sums are float32.

        On a CPU a row's result does not depend on the other rows. On a GPU the weight is rounded to the dtype of ``x``,
        and the order of the sums depends on the number of rows.
        """

    def unpacked(self) -> Weight:
        """The weight that was packed."""


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """A query and the keys that it sees: positions [first, end) of the sequence with ``block_table``."""

    query: int  # its row in the batch
    block_table: "array[int]"  # block numbers, int32; must not change while the step runs
    first: int
    end: int


class RowAttention(Protocol):
    """Attention of single queries over the paged cache, prepared once a step and called in every layer."""

    def attend(self, query: Tensor, cache: Tensor, output: Tensor, scale: float) -> None:
        """Write the softmax attention of each row into its row of ``output``; other rows are unchanged.

        Args:
            query: [tokens, heads, dim]; the heads of one token are contiguous.
            cache: [2 * kv_heads, slots, dim], the heads of the keys, then those of the values. ``heads`` is a
                multiple of ``kv_heads``.
            output: [tokens, heads, dim].
            scale: multiplies the products of queries and keys.
        """


class AttentionPlan(Protocol):
    """Which queries see which keys in one step: made once a step, followed in every layer."""

    def attend(self, qkv: Tensor, cache: Tensor, scale: float) -> Tensor:
        """Softmax attention of all queries of a step.

        Args:
            qkv: [tokens, heads + 2 * kv_heads, dim]; ``heads`` is a multiple of ``kv_heads``.
            cache: [2 * kv_heads, slots, dim], the heads of the keys, then those of the values. Those of ``qkv`` are
                already stored in it.
            scale: multiplies the products of queries and keys.

        Returns:
            [tokens, heads * dim]; any finite numbers for tokens that belong to no chunk.
        """


class LayerKernels(Protocol):
    """The kernels of a layer besides attention. All tensors have one dtype and device, and are contiguous."""

    name: str  # of the implementation, for operators
    replaced: Mapping[
        str, str
    ]  # of ``KERNELS``, those that the reference computes in place of faster ones: the reasons

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Add ``delta`` to ``hidden`` [tokens, width] in place; returns the RMS norm of the sum times ``weight``."""

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: Tensor) -> None:
        """Rotate queries and keys in place, and store keys and values in the cache.

        Args:
            qkv: [tokens, heads + 2 * kv_heads, dim]: queries, keys, values.
            rotation: cosine and signed sine, [tokens, 1, rotary dimensions]; see ``model.rope``. Dimensions beyond
                the rotary ones are not rotated.
            slots: int64, or int32 on a GPU; the cache slot of each token. Tokens beyond them are padding and are not
                stored. On a GPU, tokens with slot -1 are not stored, too.
            cache: [2 * kv_heads, slots, dim], the heads of the keys, then those of the values.
        """

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for the two halves of ``gate_up`` [tokens, 2 * width]."""


class WeightKernels(Protocol):
    """The kernels of linear layers with weights of fewer bits."""

    def pack(self, weight: Weight) -> PackedWeight:
        """``weight`` in the form that these kernels multiply by, on its device. It may be needed in any dtype."""


class Kernels(LayerKernels, WeightKernels, Protocol):
    """The kernels of a device whose steps are planned on the host."""

    def plan_attention(self, chunks: Sequence[Chunk], *, window: int | None, like: Tensor) -> AttentionPlan:
        """Plan the attention of one step.

        Args:
            chunks: in the order of their tokens in the batch.
            window: how many keys a query sees, its own included; None: all.
            like: has the dtype and the device of the cache.
        """


@dataclass(frozen=True, slots=True)
class PagedQueries:
    """The queries of one step and the blocks of their keys, as int32 tensors on the device.

    Shapes do not depend on the lengths of the sequences, so that a CUDA graph can be captured over these tensors.
    """

    sequences: Tensor  # [sequences, 4]: first row of the batch, number of queries, end, first entry in block_tables
    block_tables: Tensor  # block numbers of all sequences, one sequence after another
    short_tiles: Tensor  # [tiles, 2]: sequence, first query of the tile; tiles of at most MAX_SHORT_QUERIES queries
    long_tiles: Tensor  # [tiles, 2]: the same for the chunks of prompts


class DeviceKernels(LayerKernels, Protocol):
    """The kernels of a device that reads the plan of a step from its own memory."""

    queries_per_tile: tuple[int, int]  # of short and of long tiles

    def attend(self, qkv: Tensor, cache: Tensor, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        """Softmax attention of all queries of a step; see ``AttentionPlan.attend``."""
