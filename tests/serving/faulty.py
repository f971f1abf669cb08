"""The application with replicas that break on demand, at the engine's own seams.

``import_path: tests.serving.faulty:build_app``. A fault is asked for by a file in the directory of the environment
variable ``FAULTS``; the first replica whose model runs next takes the file away and has the fault. A prompt with the
text of ``poison`` kills every replica that begins it.
"""

import logging
import os
import re
import time
from pathlib import Path
from typing import Any, TextIO, cast

from ray.serve import Application

from phi3_serve.config.app import AppConfig
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.serving.app import build_application
from phi3_serve.serving.model_loading import RunningModel
from phi3_serve.serving.replica import ServedReplica

_POISON = re.compile(r"poison (\d+) ms")
FAULTS = ("out_of_memory", "device_assert", "hang", "full_disk")


def build_app(args: AppConfig) -> Application:
    return build_application(args, FaultyReplica)


def poison(milliseconds: int) -> str:
    """A prompt that ends the process so long after the begin of its first step."""
    return f"poison {milliseconds} ms"


class FaultyReplica(ServedReplica):
    """A replica whose forward pass looks for a fault, and for poison, before it runs."""

    def _have(self, model: RunningModel) -> None:
        super()._have(model)
        directory = Path(os.environ["FAULTS"])
        runner = cast(Any, model.engine)._core.runner
        run = runner.run
        self._poisons: dict[tuple[int, ...], int] = {}  # milliseconds, by token ids

        def run_or_fail(chunks: Any) -> Any:
            for chunk in chunks if self._poisons else ():
                if (milliseconds := self._poisons.get(tuple(chunk.sequence.tokens))) is not None:
                    time.sleep(milliseconds / 1000)
                    os._exit(1)
            for fault in FAULTS:
                try:
                    (directory / fault).unlink()
                except FileNotFoundError:
                    continue
                _have(fault)
            return run(chunks)

        runner.run = run_or_fail

    def _prepare(self, model: RunningModel, request: GenerationRequest, arrival: float) -> EngineRequest:
        prepared = super()._prepare(model, request, arrival)
        if isinstance(request.prompt, RawPrompt) and (found := _POISON.search(request.prompt.text)):
            self._poisons[prepared.prompt_ids] = int(found[1])
        return prepared


def _have(fault: str) -> None:
    import torch

    if fault == "out_of_memory":
        raise torch.OutOfMemoryError("CUDA out of memory.")
    if fault == "device_assert":
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    if fault == "hang":
        time.sleep(3600)
    for handler in {*logging.getLogger("ray.serve").handlers, *logging.getLogger("phi3_serve").handlers}:
        if isinstance(handler, logging.StreamHandler):
            # Not setStream(), which flushes the stream before: that may be a full disk, too.
            handler.stream = cast(TextIO, open("/dev/full", "w"))  # noqa: SIM115 - as long as the process
    for number in range(100):
        logging.getLogger("phi3_serve").warning("this line %d does not fit", number)
