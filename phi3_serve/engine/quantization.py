"""A model whose weights have 8 or 4 bits.

Linear layers multiply with the weights as they are stored. The embedding and the head always have 8 bits: they are a
twentieth of the model, and half of the error of 4 bits would be theirs.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from phi3_serve.engine.kernels.contract import Bits, PackedWeight, Weight, WeightKernels
from phi3_serve.engine.kernels.quantize import quantize
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import problem_of_pack

logger = logging.getLogger("phi3_serve")

BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
BITS_OF_EMBEDDING: Bits = 8  # and of the head
HEAD = "lm_head"
CPU = torch.device("cpu")


class QuantizedLinear(nn.Module):
    """A linear layer without bias."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """The products of ``x`` [..., in], [..., out]."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return self.packed.multiply(rows).view(*x.shape[:-1], -1)

    def dequantized(self) -> Tensor:
        """The weight that it multiplies by, float32 [out, in]."""
        return self.packed.unpacked().dequantized()


class QuantizedEmbedding(nn.Module):
    """An embedding with a byte for each number."""

    def __init__(self, weight: Weight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self._dtype = dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        """The embeddings of ``token_ids``, in the dtype of the model."""
        return self.weight.rows(token_ids).dequantized().to(self._dtype)

    def dequantized(self) -> Tensor:
        """The weight, float32 [vocabulary, width]."""
        return self.weight.dequantized()


class Quantizer:
    """Gives a model its weights, one after another, so that only one of them is held as it was stored."""

    def __init__(
        self, model: Any, quantization: str, kernels: WeightKernels, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        """For a model on ``device``.

        ``quantization``: int8 or int4; ``dtype``: of the norms, the embeddings and the activations.
        """
        self._model = model
        self._bits = BITS[quantization]
        self._dtype = dtype
        self._device = device
        self._kernels = _checked(kernels, dtype, device)

    def take(self, name: str, weight: Tensor | Weight) -> None:
        """Set the parameter ``name`` of the model to ``weight``. A matrix of floats gets fewer bits."""
        path, _, parameter = name.rpartition(".")
        module = self._model.get_submodule(path)
        if not isinstance(module, nn.Linear | nn.Embedding):
            assert isinstance(weight, Tensor)  # noqa: S101 - norms are not quantised
            copied = weight.to(self._device, self._dtype, copy=True)  # the stored one is a view of the file
            setattr(module, parameter, nn.Parameter(copied, requires_grad=False))
            return
        is_of_layer = isinstance(module, nn.Linear) and path != HEAD
        if isinstance(weight, Tensor):
            weight = quantize(weight.cpu(), self._bits if is_of_layer else BITS_OF_EMBEDDING)
        weight = weight.to(self._device)
        if isinstance(module, nn.Linear):
            self._model.set_submodule(path, QuantizedLinear(self._kernels.pack(weight)))
            return
        self._model.set_submodule(path, QuantizedEmbedding(weight, self._dtype))
        if self._model.config.tie_word_embeddings:
            self.take(f"{HEAD}.{parameter}", weight)


def quantize_model(model: Any, quantization: str, kernels: WeightKernels) -> None:
    """Round the weights of ``model``, Phi3Weights or a Phi3ForCausalLM, in place, one after another."""
    quantizer = Quantizer(model, quantization, kernels, model.dtype, model.device)
    for name in [name for name, _ in model.named_parameters()]:
        quantizer.take(name, model.get_parameter(name).detach())


def weight_bytes(model: Any) -> int:
    """Bytes of the weights of ``model``, Phi3Weights or a Phi3ForCausalLM, whatever bits they have."""
    total: int = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            total += module.packed.num_bytes
        elif isinstance(module, QuantizedEmbedding):
            total += module.weight.num_bytes
    return total


def _checked(kernels: WeightKernels, dtype: torch.dtype, device: torch.device) -> WeightKernels:
    """``kernels``, or the reference if their products with weights of fewer bits are wrong."""
    for bits in BITS.values():
        if problem := problem_of_pack(kernels, bits, dtype, device):
            logger.warning("The kernel for weights in %d bits is replaced by a slower one: %s", bits, problem)
            return ReferenceKernels(problem)
    return kernels
