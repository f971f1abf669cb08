"""A model whose weights have 8 or 4 bits.

Linear layers multiply with the weights as they are stored. The embedding and the head are always int8: they are a
twentieth of the model, and half of the error of 4 bits would be theirs.
"""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from phi3_serve.catalogue import FP8
from phi3_serve.engine.kernels.contract import (
    Bits,
    Fp8Weight,
    PackedWeight,
    QuantizedWeight,
    Weight,
    WeightKernels,
)
from phi3_serve.engine.kernels.cpu_library import cpu_library
from phi3_serve.engine.kernels.quantize import quantize, quantize_in_torch, quantize_to_fp8
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import problem_of_fp8, problem_of_pack

logger = logging.getLogger("phi3_serve")

BITS: dict[str, Bits] = {"int8": 8, FP8: 8, "int4": 4}
OF_EMBEDDING = "int8"  # and of the head
HEAD = "lm_head"
CPU = torch.device("cpu")


class QuantizedLinear(nn.Module):
    """A linear layer without bias."""

    def __init__(self, packed: PackedWeight, problem: str | None = None) -> None:
        """``problem``: why the reference multiplies in place of a faster kernel; None: it does not."""
        super().__init__()
        self.packed = packed
        self.problem = problem

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
        self,
        model: Any,
        quantization: str,
        kernels: WeightKernels,
        dtype: torch.dtype,
        device: torch.device = CPU,
        of_floats: str | None = None,
    ) -> None:
        """For a model on ``device``.

        Args:
            model: with no weights yet.
            quantization: int8, int4 or fp8.
            kernels: that multiply.
            dtype: of the norms, the embeddings and the activations.
            device: of the model.
            of_floats: what the matrices of linear layers that come in floats are rounded to; None: ``quantization``.
        """
        self._model = model
        self._quantization = of_floats or quantization
        self._dtype = dtype
        self._device = device
        self._problem = _problem(kernels, quantization, dtype, device)
        self._kernels = kernels if self._problem is None else ReferenceKernels(self._problem)

    def take(self, name: str, weight: Tensor | Weight | Fp8Weight) -> None:
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
            weight = round_weight(weight, self._quantization if is_of_layer else OF_EMBEDDING, self._device)
        else:
            weight = weight.to(self._device)
        if isinstance(module, nn.Linear):
            self._model.set_submodule(path, QuantizedLinear(pack(self._kernels, weight), self._problem))
            return
        assert not isinstance(weight, Fp8Weight)  # noqa: S101 - no format stores an embedding in it
        self._model.set_submodule(path, QuantizedEmbedding(weight, self._dtype))
        if self._model.config.tie_word_embeddings:
            self.take(f"{HEAD}.{parameter}", weight)


def round_weight(weight: Tensor, quantization: str, device: torch.device) -> QuantizedWeight | Fp8Weight:
    """``weight`` [out, in], of any float dtype, in int8, int4 or fp8 on ``device``.

    A processor rounds to float8 at five nanoseconds a weight, and without our compiled kernels to 4 bits at fifty. Then
    the device does it.
    """
    if quantization == FP8:
        return quantize_to_fp8(weight.to(device))
    if cpu_library() is None:
        return quantize_in_torch(weight.to(device), BITS[quantization])
    return quantize(weight.cpu(), BITS[quantization]).to(device)


def pack(kernels: WeightKernels, weight: Weight | Fp8Weight) -> PackedWeight:
    """``weight`` in the form that ``kernels`` multiply by."""
    return kernels.pack_fp8(weight) if isinstance(weight, Fp8Weight) else kernels.pack(weight)


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


def _problem(kernels: WeightKernels, quantization: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with the products of ``kernels`` with weights of fewer bits; it is in the log, too."""
    problems = {f"{bits} bits": partial(problem_of_pack, kernels, bits) for bits in sorted({*BITS.values()})[::-1]}
    if quantization == FP8:
        problems[FP8] = partial(problem_of_fp8, kernels)
    for weights, problem_of in problems.items():
        if problem := problem_of(dtype, device):
            logger.warning("The kernel for weights in %s is replaced by a slower one: %s", weights, problem)
            return f"{weights}: {problem}"
    return None
