"""The dtype that weights are loaded in, and how they are rounded. Plain Python, no tensors."""

from collections.abc import Mapping

FP8_SINCE = (8, 9)  # compute capability, Ada; older GPUs of NVIDIA do not convert float8
BFLOAT16_SINCE = (8, 0)  # compute capability, Ampere; older GPUs of NVIDIA such as T4 and V100 have float16 only


def has_bfloat16(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability computes in bfloat16."""
    return capability >= BFLOAT16_SINCE


def problem_of_kv_cache_dtype(wanted: str, capability: tuple[int, int] | None) -> str | None:
    """Why a device cannot have its key-value cache in ``wanted``; ``capability``: see ``dtype_to_load``."""
    if wanted != "fp8" or (capability is not None and capability >= FP8_SINCE):
        return None
    device = "a CPU" if capability is None else "a GPU of compute capability {}.{}".format(*capability)
    return f"kv_cache_dtype is fp8, which {device} does not have; allowed are auto and int8"


def problem_of_quantization(wanted: str, capability: tuple[int, int] | None, *, is_stored: bool = False) -> str | None:
    """Why a device cannot have its weights in ``wanted``.

    Args:
        wanted: by the operator.
        capability: see ``dtype_to_load``.
        is_stored: whether the checkpoint has them so, and nothing else is possible.
    """
    if wanted != "fp8" or (capability is not None and capability >= FP8_SINCE):
        return None
    device = "a CPU" if capability is None else "a GPU of compute capability {}.{}".format(*capability)
    needs = "it needs a GPU of compute capability {}.{} or higher".format(*FP8_SINCE)
    if is_stored:
        return f"the checkpoint has weights in fp8, which {device} does not have; {needs}"
    return (
        f"quantization is fp8, which {device} does not have; {needs}, otherwise allowed are none, int8, int4 and auto"
    )


def dtype_to_load(wanted: str, *, stored: str | None, capability: tuple[int, int] | None) -> str:
    """The dtype to load weights in, by its name in torch; ``auto``: that of the checkpoint.

    Args:
        wanted: by the operator; ``auto``: the dtype of the checkpoint on a GPU, but float16 in place of a bfloat16
            that the GPU does not have, and float32 on a CPU.
        stored: the dtype that config.json names; None if it names none.
        capability: compute capability of the GPU; None: a CPU.
    """
    if wanted != "auto":
        return wanted
    if capability is None:
        return "float32"
    if has_bfloat16(capability) or stored in ("float32", "float16"):
        return "auto"
    return "float16"


def quantization_to_load(wanted: str, *, needed: Mapping[str, int], available: int) -> str:
    """How weights are rounded; ``auto``: as little as the memory allows.

    Args:
        wanted: by the operator.
        needed: bytes of the model in memory by each quantization, from the most exact one to the smallest.
        available: bytes of memory.
    """
    if wanted != "auto":
        return wanted
    return next((name for name, num_bytes in needed.items() if num_bytes <= available), list(needed)[-1])
