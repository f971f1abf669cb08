import pytest
import torch

from phi3_serve.engine.error_kind import kind_of
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_a_lack_of_memory(error: Exception) -> None:
    assert kind_of(error) == "memory"


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: misaligned address",
    ],
)
def test_an_error_of_the_device_that_stays(words: str) -> None:
    assert (
        kind_of(torch.AcceleratorError(f"{words}\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.")) == "device"
    )


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: the provided PTX was compiled with an unsupported toolchain.",
        "CUDA error: invalid argument",
        "CUDA error: too many resources requested for launch",
        "CUDA error: operation not permitted when stream is capturing",
        "CUDA error: operation failed due to a previous error during capture",
    ],
)
def test_an_error_of_the_runtime_that_does_not_stay(words: str) -> None:
    assert kind_of(torch.AcceleratorError(words)) == "other"


@pytest.mark.parametrize(
    "words",
    [
        "out of resource: shared memory, Required: 262144, Hardware limit: 232448.",  # of a kernel that is too large
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSetStream(handle, stream)`",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "PassManager::run failed",
    ],
)
def test_another_error(words: str) -> None:
    """The device is asked after each of these."""
    assert kind_of(RuntimeError(words)) == "other"
