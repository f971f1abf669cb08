"""Which kernels a model gets."""

import torch

from phi3_serve.engine.kernels.contract import Kernels
from phi3_serve.engine.kernels.cpu import CpuKernels
from phi3_serve.engine.kernels.cpu_library import MAX_HEAD_DIM, SUFFIXES, cpu_library
from phi3_serve.engine.kernels.reference import ReferenceKernels


def select_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernels:
    """The fastest kernels for a model that computes in ``dtype`` on ``device``."""
    if device.type == "cpu" and dtype in SUFFIXES and head_dim <= MAX_HEAD_DIM:
        library = cpu_library()
        if library is not None:
            return CpuKernels(library, dtype)
    return ReferenceKernels()
