"""When a sequence ends: an end-of-sequence token, a stop string, its length, its time."""

import time
from array import array
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase, StopStringCriteria

from phi3_serve.core import FinishReason
from phi3_serve.engine.sampling.processors import Settings


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """What each token id spells, as ``StopStringCriteria`` of transformers 5.23 sees it."""
    mode = StopStringCriteria._get_stop_string_matching_mode(tokenizer)
    spelled, ids = StopStringCriteria.clean_tokenizer_vocab(tokenizer, stop_string_matching_mode=mode)
    as_bytes = (text if isinstance(text, bytes) else text.encode() for text in spelled)
    return dict(zip(ids, as_bytes, strict=True))


class Stopping:
    """The criteria of one request."""

    def __init__(self, settings: Settings, vocabulary: Mapping[int, bytes]) -> None:
        strings = settings.parameters.stop_strings or ()
        self._strings = [s.encode() for s in ([strings] if isinstance(strings, str) else strings)]
        self._bytes = vocabulary
        self._longest = max(map(len, self._strings), default=0)
        self._ends = frozenset(settings.ends)
        self._max_length = settings.max_length
        self._max_time = settings.parameters.max_time
        self._began: float | None = None  # time.monotonic()

    def begin(self) -> None:
        """Start the clock of max_time, once."""
        self._began = self._began or time.monotonic()

    def reason(self, history: "array[int]", token: int) -> FinishReason | None:
        """Why the sequence of ``history`` and ``token`` ends, or None if it goes on."""
        if token in self._ends or self.completes_string(history, token):
            return "stop"
        if len(history) + 1 >= self._max_length or self.is_late():
            return "length"
        return None

    def is_late(self) -> bool:
        """Whether max_time is over."""
        return self._max_time is not None and time.monotonic() - (self._began or 0.0) > self._max_time

    def completes_string(self, history: Sequence[int], token: int) -> bool:
        """Whether a stop string ends within ``token``."""
        last = self._bytes.get(token) if self._strings else None
        if last is None:  # ids of the embedding beyond the tokenizer's vocabulary spell nothing
            return False
        before = b""
        for earlier in reversed(history):
            spelled = self._bytes.get(earlier)
            if spelled is None or len(before) >= self._longest:
                break
            before = spelled + before
        text = before + last
        return any(len(before) < end for s in self._strings if (end := _last_end(text, s)))


def _last_end(text: bytes, string: bytes) -> int:
    found = text.rfind(string)
    return 0 if found < 0 else found + len(string)
