"""A test of a loaded model, before it gets requests."""

from array import array

import torch

from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.model.device_runner import DeviceRunner
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.errors import CheckpointError


def self_test(runner: ModelRunner | DeviceRunner, token_id: int) -> None:
    """Run one token, with the first block of the key-value cache.

    Raises:
        CheckpointError: a score is not a number, because the weights are damaged or too large for their dtype.
    """
    sequence = CachedSequence([token_id])
    sequence.block_table = array("i", [0])
    if not bool(torch.isfinite(runner.run([Chunk(sequence, 1, 1)])).all()):
        raise CheckpointError(
            "the self-test gave nan or inf scores; the weights are damaged, or too large for their dtype"
        )
