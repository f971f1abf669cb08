"""When a sequence ends: an end-of-sequence token, a stop string, its length, or its time."""

import time
from array import array
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase, StopStringCriteria

from phi3_serve.core import EngineRequest, FinishReason


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes of each token id, as ``StopStringCriteria`` of transformers 5.23 computes them."""
    mode = StopStringCriteria._get_stop_string_matching_mode(tokenizer)
    texts, ids = StopStringCriteria.clean_tokenizer_vocab(tokenizer, stop_string_matching_mode=mode)
    as_bytes = (text if isinstance(text, bytes) else text.encode() for text in texts)
    return dict(zip(ids, as_bytes, strict=True))


class StoppingCriteria:
    """The stopping criteria of one request."""

    def __init__(self, request: EngineRequest, vocabulary: Mapping[int, bytes]) -> None:
        """``vocabulary``: the bytes of each token id."""
        parameters = request.parameters
        self._strings = [string.encode() for string in parameters.stop_strings]
        self._vocabulary = vocabulary
        self._max_string_bytes = max(map(len, self._strings), default=0)
        self._eos_token_ids = frozenset(parameters.eos_token_ids)
        self._max_length = request.max_length
        self._max_time = parameters.max_time
        self._started: float | None = None  # time.monotonic()

    def start(self) -> None:
        """Start the clock of max_time; later calls have no effect."""
        self._started = self._started or time.monotonic()

    def finish_reason(self, history: "array[int]", token: int) -> FinishReason | None:
        """Why a sequence of ``history`` and then ``token`` ends; None if it goes on."""
        if token in self._eos_token_ids or self.completes_string(history, token):
            return "stop"
        if len(history) + 1 >= self._max_length or self.is_out_of_time():
            return "length"
        return None

    def is_out_of_time(self) -> bool:
        """Whether max_time is over."""
        return self._max_time is not None and time.monotonic() - (self._started or 0.0) > self._max_time

    def completes_string(self, history: Sequence[int], token: int) -> bool:
        """Whether a stop string ends within ``token``, which follows ``history``."""
        last = self._vocabulary.get(token) if self._strings else None
        if last is None:  # an id of the embedding beyond the tokenizer's vocabulary has no text
            return False
        before = b""
        for earlier in reversed(history):
            piece = self._vocabulary.get(earlier)
            if piece is None or len(before) >= self._max_string_bytes:
                break
            before = piece + before
        text = before + last
        return any(len(before) < end for s in self._strings if (end := _end_of_last(text, s)))


def _end_of_last(text: bytes, string: bytes) -> int:
    found = text.rfind(string)
    return 0 if found < 0 else found + len(string)
