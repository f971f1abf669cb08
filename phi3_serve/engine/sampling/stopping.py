"""When a sequence ends: an end-of-sequence token, a stop string, its length, or its time."""

import time
from array import array
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase, StopStringCriteria

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import FinishReason


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
        self._strings = tuple(string.encode() for string in parameters.stop_strings)
        self._stops = tuple(string.encode() for string in parameters.stop)
        self._num_prompt_tokens = len(request.prompt_ids)
        self._num_before_stop = self._num_prompt_tokens + (parameters.min_new_tokens or 0)
        self._vocabulary = vocabulary
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
        """Whether a stop string ends within ``token``, which follows ``history``.

        Those of ``stop_strings`` may begin in the prompt, as in transformers. Those of ``stop`` are searched for in the
        answer, after the tokens of ``min_new_tokens``, as in vLLM (v1/engine/detokenizer.py).
        """
        if self._completes(self._strings, history, 0, token):
            return True
        may_stop = len(history) >= self._num_before_stop
        return may_stop and self._completes(self._stops, history, self._num_prompt_tokens, token)

    def _completes(self, strings: tuple[bytes, ...], history: Sequence[int], start: int, token: int) -> bool:
        """Whether one of ``strings`` ends within ``token`` and begins at or behind the token number ``start``."""
        last = self._vocabulary.get(token) if strings else None
        if last is None:  # an id of the embedding beyond the tokenizer's vocabulary has no text
            return False
        longest = max(map(len, strings))
        pieces: list[bytes] = []
        num_bytes = 0
        for number in range(len(history) - 1, start - 1, -1):
            piece = self._vocabulary.get(history[number])
            if piece is None or num_bytes >= longest:
                break
            pieces.append(piece)
            num_bytes += len(piece)
        text = b"".join(reversed(pieces)) + last
        return any(text.endswith(strings, 0, end) for end in range(num_bytes + 1, len(text) + 1))
