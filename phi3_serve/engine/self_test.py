"""A test of the loaded model, before it gets requests."""

import math
import queue
import time
from typing import Any

from phi3_serve.core import Engine, EngineEvent, EngineRequest, Failed, Finished
from phi3_serve.engine.loader import LoadedModel
from phi3_serve.errors import CheckpointError, InvalidRequest
from phi3_serve.parameters import GenerationParameters
from phi3_serve.resolved_parameters import resolve

NUM_TOKENS = 4


def self_test(name: str, loaded: LoadedModel, engine: Engine) -> None:
    """Generate a few tokens greedily.

    Raises:
        CheckpointError: a score is not a number, because the weights are damaged or too large for their dtype.
    """
    finished = _answer(loaded, engine)
    if isinstance(finished, Failed) and not isinstance(finished.error, InvalidRequest):
        raise finished.error
    if isinstance(finished, Failed) or not all(map(math.isfinite, finished.sequences[0].scores or ())):
        raise CheckpointError(
            f"{name}: the self-test gave nan or inf scores; the weights are damaged, or too large for their dtype"
        )


def _answer(loaded: LoadedModel, engine: Engine) -> Finished | Failed:
    events: queue.Queue[EngineEvent] = queue.Queue()
    tokenizer: Any = loaded.tokenizer
    prompt = (tokenizer.convert_tokens_to_ids("<|user|>"),)
    length = len(prompt) + NUM_TOKENS
    engine.submit(
        EngineRequest(
            request_id="self-test",
            prompt_ids=prompt,
            parameters=resolve(GenerationParameters(do_sample=False, output_scores=True)),
            min_length=length,
            max_length=length,
            stream=False,
            deadline=time.monotonic() + 3600,
        ),
        events.put,
    )
    while not isinstance(event := events.get(), Finished | Failed):
        pass
    return event
