"""A process that runs parts of ``make gpu``, one after another: importing torch and starting CUDA take ten seconds.

It reads a line of JSON for each part and prints a line with ``END`` when the part has ended well. A part that fails ends
the process, because the device may have an error that stays.
"""

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu import report

END = b"\x1e"  # in the line that ends a part
LAST = b"last"  # in it, if the process ends with this part
PR_SET_PDEATHSIG = 1  # of Linux
DUMPED_BEFORE_END_S = 3.0  # a part that hangs shows where, just before its time is over
LEFT_BYTES = 256 << 20  # of a part that has ended; with more, the next part gets a new process


def main() -> None:
    """Run the parts that come by stdin. Their figures go to the paths that come with them."""
    for line in sys.stdin:
        order = json.loads(line)
        path = Path(order["path"])
        report.begin(path)
        faulthandler.dump_traceback_later(max(1.0, order["until"] - time.time() - DUMPED_BEFORE_END_S))
        function: Callable[..., Any] = getattr(importlib.import_module(order["module"]), order["function"])
        figures = function(*order["arguments"])
        faulthandler.cancel_dump_traceback_later()
        report.write(figures)
        del figures
        is_last = not _is_clean()
        sys.stdout.buffer.write(END + LAST * is_last + b"\n")
        sys.stdout.buffer.flush()
        if is_last:
            return


def _is_clean() -> bool:
    """Whether the next part finds the memory of the GPU as the last one did."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return True
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() < LEFT_BYTES


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody else would end a part that hangs
    code = 0
    try:
        main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a part must not keep the process
