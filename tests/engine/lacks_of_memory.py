"""What torch, its libraries and Triton raise where memory is missing. The last two come from allocations that fail."""

from collections.abc import Callable

import numpy as np
import torch

TOO_MUCH = 1 << 60  # bytes


def _raised_by(allocate: Callable[[], object]) -> Exception:
    try:
        allocate()
    except Exception as error:
        return error.with_traceback(None)
    raise AssertionError("there is memory for 2 ** 60 bytes")


LACKS_OF_MEMORY: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in "
        "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information."
    ),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    _raised_by(lambda: torch.empty(TOO_MUCH, dtype=torch.int8)),
    _raised_by(lambda: np.empty(TOO_MUCH, dtype=np.int8)),
]
