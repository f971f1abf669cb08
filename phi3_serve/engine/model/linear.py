"""Linear layers in the form that this machine computes fastest.

Weights in 16 bits that a CPU multiplies by activations in float32 stay as they are (``kernels/half_panels.py``). All
other floats have three forms on a CPU: torch's own; oneDNN's blocked layout, reordered once instead of in each call;
and panels for the kernel in ``kernels/csrc/bfloat16_linear.h``. Which form is fastest depends on the processor, so they
are timed when a model is loaded.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels.cpu_library import MULTIPLY, cpu_library

logger = logging.getLogger("phi3_serve")

Linear = Callable[[Tensor], Tensor]

ROWS_PACKED_FOR = 16  # oneDNN picks the layout for one number of rows; this one costs least at other numbers
MAX_UNPADDED_ROWS = 32
PADDING_STEP = 8
ROW_BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the error of one row, relative
PANEL_OUTPUTS, PANEL_ROWS = 16, 16  # kernels/csrc/bfloat16_linear.h has the same constants
TRIAL_ROWS = (1, 16, 128)
TRIAL_ROUNDS = 5
TRIAL_BYTES = 1 << 28  # of weights, more than a processor's caches hold


def plain(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in] as a torch operation."""
    return lambda x: linear(x, weight)


def packed(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in], reordered for oneDNN. CPU only."""
    # looked up once, because the look-up takes longer than the call
    multiply = torch.ops.mkldnn._linear_pointwise.default
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_PACKED_FOR)
    return lambda x: multiply(x, reordered, None, "none", [], "")


def paneled(weight: Tensor) -> Linear:
    """The layer of ``weight`` [out, in], bfloat16, in panels of sixteen outputs for ``kernels/csrc/bfloat16_linear.h``.

    Raises:
        RuntimeError: there is no such kernel for this processor or dtype.
    """
    library = cpu_library()
    if library is None or not hasattr(library, MULTIPLY) or weight.dtype != torch.bfloat16:
        raise RuntimeError(f"no panel kernel for {weight.dtype} on this processor")
    outputs, inputs = weight.shape
    if outputs % PANEL_OUTPUTS or inputs % 2:
        return packed(weight)
    multiply = getattr(library, MULTIPLY)
    panels = weight.view(outputs // PANEL_OUTPUTS, PANEL_OUTPUTS, inputs // 2, 2).transpose(1, 2).contiguous()

    def layer(x: Tensor) -> Tensor:
        rows = len(x)
        if x.shape != (rows, inputs) or x.dtype != torch.bfloat16 or not x.is_contiguous():
            raise TypeError(f"expected contiguous bfloat16 [rows, {inputs}], got {x.dtype} {list(x.shape)}")
        pairs = torch.empty(-(-rows // PANEL_ROWS) * PANEL_ROWS * inputs // 2, dtype=torch.int32)
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


class Streamed:
    """The form of layers for a GPU: our kernel for one row, else torch's operation.

    The kernel is compared with torch for each size of a weight. Where it differs or does not compile, torch computes
    one row, too.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}  # of the kernel, by the size of a weight
        self._is_right: dict[torch.Size, bool] = {}

    def __call__(self, weight: Tensor) -> Linear:
        """The layer of ``weight`` [out, in].

        Raises:
            torch.AcceleratorError: the device has failed. Nothing can run on it any more.
            RuntimeError: the device has no memory for one row.
        """
        from phi3_serve.engine.kernels.triton_linear import multiply_row, row_config  # Triton is not there for a CPU

        config = row_config(*weight.shape)
        if config is None:
            return plain(weight)
        if weight.shape not in self._is_right:
            problem = _problem_of_row(lambda x: multiply_row(x, weight, config), weight)
            self._is_right[weight.shape] = problem is None
            if problem is not None:
                logger.warning("The kernel for one row is replaced by torch for %s: %s", list(weight.shape), problem)
                self.problems[str(list(weight.shape))] = problem
        if not self._is_right[weight.shape]:
            return plain(weight)
        return lambda x: multiply_row(x, weight, config) if x.shape[0] == 1 else linear(x, weight)


def _problem_of_row(multiply: Linear, weight: Tensor) -> str | None:
    """How ``multiply`` differs from torch for one random row, or why it cannot run; None if they agree."""
    x = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected = linear(x, weight).float()
    try:
        difference = float((multiply(x).float() - expected).norm() / expected.norm())
    except Exception as error:
        if kind_of(error) != "other":
            raise
        return f"{type(error).__name__}: {error}"
    return None if difference <= ROW_BOUND[weight.dtype] else f"the relative error is {difference:.3g}"


FORMS = (plain, packed, paneled)  # for a CPU


def padded_rows(count: int) -> int:
    """How many rows to compute if ``count`` are needed.

    oneDNN generates code for each number of rows. That takes milliseconds, and the code, about a megabyte, is kept.
    """
    return count if count <= MAX_UNPADDED_ROWS else -(-count // PADDING_STEP) * PADDING_STEP


def compute_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in: that of the weights, but float32 on a processor without half-precision instructions.

    On such a processor torch emulates half precision, ten times slower for a batch. Rounded weights keep their values.
    """
    if device.type != "cpu" or weights == torch.float32:
        return weights
    is_native = weights == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weights if is_native else torch.float32


@torch.inference_mode()
def fastest_form(weights: Sequence[Tensor], dtype: torch.dtype) -> Callable[[Tensor], Linear]:
    """The form of ``FORMS`` with the least time over few, some and many rows; each number of rows counts the same.

    ``weights`` [out, in] are those of the same linear layer in each decoder layer, to be computed in ``dtype``. The
    trial runs through so many of them that they are read from memory, as in a step, unless the processor's caches
    hold the whole model.
    """
    if weights[0].device.type == "cuda":
        return Streamed()
    if weights[0].device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return plain
    tried = [weight.to(dtype) for weight in weights[: -(-TRIAL_BYTES // weights[0].nbytes)]]
    times: dict[Callable[[Tensor], Linear], list[float]] = {}
    for form in FORMS:
        try:
            layers = [form(weight) for weight in tried]
            times[form] = [_seconds(layers, tried[0], rows) for rows in TRIAL_ROWS]
        except RuntimeError as error:  # this build of torch or this processor does not have the form
            logger.debug("linear layers are not %s: %s", form.__name__, str(error).split("\n", 1)[0])
    fastest = min(times, key=lambda form: math.prod(times[form]))
    shown = ", ".join(f"{seconds * 1e3:.2f}" for seconds in times[fastest])
    logger.info("linear layers are %s: %s ms for %s rows", fastest.__name__, shown, TRIAL_ROWS)
    return fastest


def _seconds(layers: Sequence[Linear], weight: Tensor, rows: int) -> float:
    """Seconds per layer for an input of ``rows`` rows; all ``layers`` have the shape of ``weight``."""
    x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    seconds = []
    for _ in range(TRIAL_ROUNDS):
        began = time.perf_counter()
        for layer in layers:
            layer(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(layers)
