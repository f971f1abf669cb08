"""Linear layers in the form that this machine multiplies fastest.

On a CPU there are three: torch's; oneDNN's blocked layout, reordered once instead of at every call; and panels for the
kernel of our own. Which is faster depends on the processor, so they are tried when a model is loaded.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from phi3_serve.engine.kernels.library import MULTIPLY, kernels

logger = logging.getLogger("phi3_serve")

Linear = Callable[[Tensor], Tensor]

ROWS_PACKED_FOR = 16  # oneDNN chooses the layout for a number of rows; this one loses least at others
EXACT_ROWS = 32
ROW_STEP = 8
PANEL, MAX_ROWS = 16, 16  # outputs, rows; kernels.cpp has the same
TRIAL_ROWS = (1, 16, 128)
TRIAL_ROUNDS = 5
TRIAL_BYTES = 1 << 28  # of weights; more than caches hold


def plain(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in] as torch has it."""
    return lambda x: linear(x, weight)


def packed(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in], reordered for oneDNN; CPU only."""
    # bound once: looking an operator up costs more than calling it
    multiply = torch.ops.mkldnn._linear_pointwise.default
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_PACKED_FOR)
    return lambda x: multiply(x, reordered, None, "none", [], "")


def paneled(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in], bfloat16, in panels of sixteen outputs for ``kernels.cpp``.

    Raises:
        RuntimeError: there is no such kernel for this processor or type.
    """
    library = kernels()
    if library is None or not hasattr(library, MULTIPLY) or weight.dtype != torch.bfloat16:
        raise RuntimeError(f"no kernel of our own for {weight.dtype} on this processor")
    outputs, inputs = weight.shape
    if outputs % PANEL or inputs % 2:
        return packed(weight)
    multiply = getattr(library, MULTIPLY)
    panels = weight.view(outputs // PANEL, PANEL, inputs // 2, 2).transpose(1, 2).contiguous()

    def layer(x: Tensor) -> Tensor:
        rows = len(x)
        if x.shape != (rows, inputs) or x.dtype != torch.bfloat16 or not x.is_contiguous():
            raise TypeError(f"the kernel wants contiguous bfloat16 [rows, {inputs}], not {x.dtype} {list(x.shape)}")
        pairs = torch.empty(-(-rows // MAX_ROWS) * MAX_ROWS * inputs // 2, dtype=torch.int32)
        out = x.new_empty(rows, outputs)
        multiply(
            panels.data_ptr(),
            x.data_ptr(),
            pairs.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            outputs,
            torch.get_num_threads(),
        )
        return out

    return layer


FORMS = (plain, packed, paneled)


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
def fastest_form(weights: Sequence[Tensor], dtype: torch.dtype) -> Callable[[Tensor], Linear]:
    """The form of ``FORMS`` that takes the least time for few, some and many rows, each number of rows weighing alike.

    ``weights`` [out, in] are those of the same linear layer in each decoder layer, to be multiplied in ``dtype``. So
    many of them are tried, one after another, that they come from memory, as in a step, unless the whole model fits
    into the processor's caches.
    """
    if weights[0].device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return plain
    tried = [weight.to(dtype) for weight in weights[: -(-TRIAL_BYTES // weights[0].nbytes)]]
    times: dict[Callable[[Tensor], Linear], list[float]] = {}
    for form in FORMS:
        try:
            layers = [form(weight) for weight in tried]
            times[form] = [_seconds(layers, tried[0], rows) for rows in TRIAL_ROWS]
        except RuntimeError as error:  # this build or processor has no such form
            logger.debug("linear layers are not %s: %s", form.__name__, str(error).split("\n", 1)[0])
    fastest = min(times, key=lambda form: math.prod(times[form]))
    shown = ", ".join(f"{seconds * 1e3:.2f}" for seconds in times[fastest])
    logger.info("linear layers are %s: %s ms for %s rows", fastest.__name__, shown, TRIAL_ROWS)
    return fastest


def _seconds(layers: Sequence[Linear], weight: Tensor, rows: int) -> float:
    """The time of one of ``layers``, all of which take what ``weight`` takes."""
    x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    seconds = []
    for _ in range(TRIAL_ROUNDS):
        began = time.perf_counter()
        for layer in layers:
            layer(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(layers)
