"""Linear layers of a safetensors file that are stored as several tensors in place of their weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from phi3_serve.engine.kernels.contract import Fp8Weight, Weight
from phi3_serve.engine.stored_quantization import StoredQuantization


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """What a format stores of a layer."""

    parts: Sequence[str]  # required; a tensor with the first one is the sign of such a layer
    optional: Sequence[str]  # what may be there besides
    num_outputs: Callable[[Mapping[str, Sequence[int]]], int]  # from the shapes of the parts
    unpack: Callable[[Mapping[str, Tensor], int, StoredQuantization], Weight | Fp8Weight]
    """The weight from the parts, its number of inputs, and how it is stored. Raises CheckpointError, which does not
    name the layer, if a part is damaged."""
