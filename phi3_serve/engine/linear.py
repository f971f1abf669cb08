"""Linear layers in the form that this machine multiplies fastest.

On a CPU oneDNN can hold a weight in its own blocked layout, reordered once instead of at every call; which form is
faster depends on the processor, so it is tried on one layer when a model is loaded.
"""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

logger = logging.getLogger("phi3_serve")

Linear = Callable[[Tensor], Tensor]

ROWS_PACKED_FOR = 16  # oneDNN chooses the layout for a number of rows; this one loses least at others
EXACT_ROWS = 32
ROW_STEP = 8
TRIAL_ROWS = (1, 16)
TRIAL_ROUNDS = 7


def plain(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in] as torch has it."""
    return lambda x: linear(x, weight)


def packed(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in], reordered for oneDNN; CPU only."""
    # bound once: looking an operator up costs more than calling it
    multiply = torch.ops.mkldnn._linear_pointwise.default
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_PACKED_FOR)
    return lambda x: multiply(x, reordered, None, "none", [], "")


def padded_rows(count: int) -> int:
    """How many rows to multiply where ``count`` are wanted.

    For each number of rows oneDNN generates code of its own, which takes milliseconds and is kept, about a megabyte.
    """
    return count if count <= EXACT_ROWS else -(-count // ROW_STEP) * ROW_STEP


def compute_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """What to multiply in: the weights' type, but float32 on a processor without instructions for half precision.

    There torch emulates, at a tenth of the speed with a batch. The weights keep the values they were rounded to.
    """
    if device.type != "cpu" or weights == torch.float32:
        return weights
    is_native = weights == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weights if is_native else torch.float32


@torch.inference_mode()
def fastest_form(weight: Tensor) -> Callable[[Tensor], Linear]:
    """``plain`` or ``packed``, whichever takes less time over one and over sixteen rows of ``weight``."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return plain
    try:
        forms = {form: form(weight) for form in (plain, packed)}
        times = {form: sum(_seconds(layer, weight, rows) for rows in TRIAL_ROWS) for form, layer in forms.items()}
    except RuntimeError as error:  # this build or processor has no such layout
        logger.info("linear layers stay plain: %s", str(error).split("\n", 1)[0])
        return plain
    logger.info("linear layers: plain %.2f ms, packed %.2f ms", times[plain] * 1e3, times[packed] * 1e3)
    return min(times, key=lambda form: times[form])


def _seconds(layer: Linear, weight: Tensor, rows: int) -> float:
    x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    seconds = []
    for _ in range(TRIAL_ROUNDS):
        began = time.perf_counter()
        layer(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
