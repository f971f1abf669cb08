"""How often tokens are in prompts and answers, on the device, for the rows with penalties."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from phi3_serve.engine.kvcache.cached_sequence import CachedSequence

NO_SLOT = -1
_UNKNOWN = -1


class TokenCounts:
    """A slot for each sequence with penalties that runs in a step. It has a number for each token of the vocabulary.

    The number is twice how often the answer has the token, and one more if the prompt has it. Whoever chooses a token
    on the device adds 2 to its number there, so that the next step needs no token on the host.

    A slot is right if it belongs to the same sequence and has counted as many tokens as the sequence has, unread ones
    included. Tokens are never taken from a sequence, so the same length means the same tokens. A slot that is not right
    is counted again from the tokens on the host. That is so for a new sequence, a fork, a sequence whose slot was taken
    while it did not run, and one whose last token was chosen on the host.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        """``num_slots``: sequences in one step at most."""
        self.on_device = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)
        self._slots: WeakKeyDictionary[CachedSequence, int] = WeakKeyDictionary()
        self._lengths = [_UNKNOWN] * num_slots  # tokens that each slot has counted

    def slots(self, sequences: Sequence[CachedSequence]) -> list[int]:
        """The slots of ``sequences``, which are about to get a token each; the device then counts these tokens.

        Raises:
            RuntimeError: the last token of a sequence is unread, and its slot has not counted it. No token can be
                chosen then. An unread token was chosen in the step before, whose slots are kept.
        """
        if not all(sequence in self._slots for sequence in sequences):
            self._assign(sequences)
        slots = [self._slots[sequence] for sequence in sequences]
        for sequence, slot in zip(sequences, slots, strict=True):
            if self._lengths[slot] != len(sequence):
                self._count(sequence, slot)
            self._lengths[slot] = len(sequence) + 1
        return slots

    def _assign(self, sequences: Sequence[CachedSequence]) -> None:
        """Give each of ``sequences`` a slot. Others lose theirs: they have ended, or do not run in this step."""
        kept = {sequence: self._slots[sequence] for sequence in sequences if sequence in self._slots}
        free = iter(sorted(set(range(len(self._lengths))) - set(kept.values())))
        for sequence in sequences:
            if sequence not in kept:
                kept[sequence] = slot = next(free)
                self._lengths[slot] = _UNKNOWN
        self._slots = WeakKeyDictionary(kept)

    def _count(self, sequence: CachedSequence, slot: int) -> None:
        if sequence.num_unread:
            raise RuntimeError("the counts of a sequence with an unread token were lost")
        row = torch.from_numpy(counted(sequence, self.on_device.shape[1]))
        if self.on_device.device.type == "cuda":  # a copy from memory that is not pinned waits for the device
            row = row.pin_memory()
        self.on_device[slot].copy_(row, non_blocking=True)


def counted(sequence: CachedSequence, vocab_size: int) -> Any:
    """The number of each token in ``TokenCounts``, int32 [vocabulary]."""
    tokens = np.frombuffer(sequence.tokens, dtype=np.int64)
    prompt, answer = tokens[: sequence.num_prompt_tokens], tokens[sequence.num_prompt_tokens :]
    in_answer = np.bincount(answer, minlength=vocab_size)
    return (2 * in_answer + (np.bincount(prompt, minlength=vocab_size) > 0)).astype(np.int32)
