"""An object in another process, so that competitors share no threads and no memory."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from phi3_serve.engine.threads import in_temporary_thread
from phi3_serve.errors import EngineFailure

# A server process imports what takes eight seconds, once, and each worker is a fork of it. It runs nothing, so that no
# worker inherits threads, a device or memory that counts.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "transformers.models.phi3.modeling_phi3"])


class WorkerProcess:
    """An object in another process. Its methods are called by name, one at a time."""

    def __init__(self, make: Callable[[], Any], *, num_threads: int) -> None:
        """``make``, arguments and results must be picklable. With ``num_threads`` 0 torch decides."""
        self._pipe, child_pipe = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve_calls, args=(child_pipe, make, num_threads), daemon=True)
        self._process.start()
        child_pipe.close()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of ``method``."""
        self._pipe.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            error, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise EngineFailure(f"The process ended with exit code {self._process.exitcode}.") from None
        if error is not None:
            raise EngineFailure(error)
        return result


def _serve_calls(pipe: Connection, make: Callable[[], Any], num_threads: int) -> None:
    if num_threads:
        torch.set_num_threads(num_threads)
    try:
        obj = in_temporary_thread(make)
        pipe.send((None, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((None, getattr(obj, method)(*arguments)))
    except EOFError:  # the other end closed the pipe
        if hasattr(obj, "close"):
            obj.close()
    except Exception:
        pipe.send((traceback.format_exc(), None))
