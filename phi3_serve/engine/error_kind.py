"""What an exception says about the machine: it lacks memory, its device has failed, or neither."""

from typing import Literal

import torch

ErrorKind = Literal["memory", "device", "other"]

# An exception without a class of its own for a lack of memory has one of these words.
_MEMORY_WORDS = (
    "CUDA error: out of memory",  # an AcceleratorError, for cudaErrorMemoryAllocation; c10/cuda/CUDAException.cpp
    "CUDA driver error: out of memory",  # of torch's expandable segments; c10/cuda/driver_api.h
    "Triton Error [CUDA]: out of memory",  # a kernel does not fit beside the rest; third_party/nvidia/backend/driver.c
    "CUBLAS_STATUS_ALLOC_FAILED",  # TORCH_CUDABLAS_CHECK in ATen/cuda/Exceptions.h
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # the same, of a handle that finds no memory
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",  # torch's allocator of main memory
    "Cannot allocate memory",  # the system
    "not enough memory",
)

# Of cudaGetErrorString, for the errors after which the process has to end; cudaError in the CUDA Runtime API. torch
# raises an AcceleratorError for any error of the runtime. After the others, such as a kernel that the GPU cannot run or
# a capture that fails, the device computes on.
_DEVICE_WORDS = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected",
    "misaligned address",
    "hardware stack error",
    "an illegal instruction was encountered",
    "operation not supported on global/shared address space",
    "invalid program counter",
)


def kind_of(error: BaseException) -> ErrorKind:
    """What ``error`` says about the machine.

    - ``memory``: something did not fit. Less at once may fit, and what is in memory is whole.
    - ``device``: the device can compute nothing more for this process (a "sticky" error).
    - ``other``: anything else. Libraries report also errors of a device that stay as any RuntimeError, and the list of
      words may lack one; so whoever goes on after such an error asks the device first (``DeviceRunner.check_device``).
    """
    is_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if is_of_memory or any(words in str(error) for words in _MEMORY_WORDS):
        return "memory"
    stays = isinstance(error, torch.AcceleratorError) and any(words in str(error) for words in _DEVICE_WORDS)
    return "device" if stays else "other"
