"""Which kernels a model gets."""

import torch

from phi3_serve.engine.kernels.contract import Kernels, WeightKernels
from phi3_serve.engine.kernels.cpu import CpuKernels
from phi3_serve.engine.kernels.cpu_library import MAX_HEAD_DIM, SUFFIXES, cpu_library
from phi3_serve.engine.kernels.reference import ReferenceKernels


def select_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernels:
    """The fastest kernels for a model that computes in ``dtype`` on ``device``."""
    if device.type != "cpu":
        return ReferenceKernels(f"there are no kernels for the device {device.type}")
    if dtype not in SUFFIXES:
        return ReferenceKernels(f"there are no CPU kernels for {dtype}")
    if head_dim > MAX_HEAD_DIM:
        return ReferenceKernels(f"the CPU kernels take heads of at most {MAX_HEAD_DIM} dimensions, not {head_dim}")
    library = cpu_library()
    if library is None:
        return ReferenceKernels("the CPU kernels are not compiled: install g++, then install phi3-serve again")
    return CpuKernels(library, dtype)


def select_weight_kernels(device: torch.device) -> WeightKernels:
    """The fastest kernels for weights of fewer bits on ``device``, for any dtype."""
    if device.type == "cuda":
        from phi3_serve.engine.kernels.triton_quantized import TritonWeights  # Triton is not installed for a CPU

        return TritonWeights()
    return select_kernels(device, torch.float32, head_dim=1)  # those of a weight fit any head
