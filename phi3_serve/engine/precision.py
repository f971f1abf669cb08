"""The dtype that weights are loaded in, and how they are rounded. Plain Python, no tensors."""

from collections.abc import Mapping

BFLOAT16_SINCE = (8, 0)  # compute capability, Ampere; older GPUs of NVIDIA such as T4 and V100 have float16 only


def has_bfloat16(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability computes in bfloat16."""
    return capability >= BFLOAT16_SINCE


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
