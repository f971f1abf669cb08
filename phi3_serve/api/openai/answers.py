"""OpenAI's answers: choices of plain answers and of streams, usage, log-probabilities."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from phi3_serve.core import Completion, Done

_MIN_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot express

Json = dict[str, Any]


@dataclass(kw_only=True)
class ResponseBuilder(ABC):
    """Builds the JSON of one answer, plain or streamed: the parts that both endpoints share."""

    object_name: ClassVar[str]
    chunk_name: ClassVar[str]

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, done: Sequence[Done], usage: Mapping[str, int]) -> Json:
        """The plain answer."""
        completions = [completion for d in done for completion in d.completions]
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        head = self._head(self.object_name)
        return {
            **head,
            "choices": choices,
            "usage": usage,
            **_warnings(w for d in done for w in d.warnings),
        }

    def chunk(self, choice: Json, *, with_usage: bool, warnings: Sequence[str] = ()) -> Json:
        """One chunk of a stream. ``with_usage``: the stream ends with the usage, so its other chunks have a null."""
        usage = {"usage": None} if with_usage else {}
        return {**self._head(self.chunk_name), "choices": [choice], **usage, **_warnings(warnings)}

    def usage_chunk(self, usage: Mapping[str, int]) -> Json:
        """The chunk that ends a stream whose client asked for the usage."""
        return {**self._head(self.chunk_name), "choices": [], "usage": usage}

    @abstractmethod
    def opening_part(self, index: int) -> Json | None:
        """What a choice begins with in a stream, if anything."""

    @abstractmethod
    def text_part(self, index: int, text: str) -> Json:
        """The next text of a choice in a stream."""

    @abstractmethod
    def final_part(self, index: int, completion: Completion) -> Json:
        """The end of a choice in a stream: the finish reason, and the log-probabilities of all its tokens."""

    @abstractmethod
    def _choice(self, index: int, completion: Completion) -> Json:
        """One choice of the plain answer."""

    def _head(self, name: str) -> Json:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


class ChatResponseBuilder(ResponseBuilder):
    """Builds the answers of ``/v1/chat/completions``."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def opening_part(self, index: int) -> Json | None:
        """The role."""
        return _chat_part(index, {"role": "assistant", "content": ""})

    def text_part(self, index: int, text: str) -> Json:
        """See the base class."""
        return _chat_part(index, {"content": text})

    def final_part(self, index: int, completion: Completion) -> Json:
        """See the base class."""
        logprobs = self._logprobs(completion)
        return _chat_part(index, {}, completion.sequence.finish_reason, logprobs)

    def _choice(self, index: int, completion: Completion) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._logprobs(completion),
            "finish_reason": completion.sequence.finish_reason,
        }

    def _logprobs(self, completion: Completion) -> Json | None:
        tokens = _scored_tokens(completion)
        return None if tokens is None else {"content": tokens, "refusal": None}


@dataclass(kw_only=True)
class CompletionResponseBuilder(ResponseBuilder):
    """Builds the answers of ``/v1/completions``. ``echoed``: the text before each choice, or none at all."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    echoed: Sequence[str] = ()

    def opening_part(self, index: int) -> Json | None:
        """The echoed prompt."""
        return _text_part(index, self._echo(index)) if self._echo(index) else None

    def text_part(self, index: int, text: str) -> Json:
        """See the base class."""
        return _text_part(index, text)

    def final_part(self, index: int, completion: Completion) -> Json:
        """See the base class."""
        logprobs = self._logprobs(completion)
        return _text_part(index, "", completion.sequence.finish_reason, logprobs)

    def _choice(self, index: int, completion: Completion) -> Json:
        logprobs = self._logprobs(completion)
        return _text_part(index, self._echo(index) + completion.text, completion.sequence.finish_reason, logprobs)

    def _echo(self, index: int) -> str:
        return self.echoed[index] if self.echoed else ""

    def _logprobs(self, completion: Completion) -> Json | None:
        tokens = _scored_tokens(completion)
        return None if tokens is None else _in_columns(tokens)


def _warnings(warnings: Iterable[str]) -> Json:
    """Each warning once; nothing if there is none."""
    each = list(dict.fromkeys(warnings))
    return {"warnings": each} if each else {}


def best_answers(done: Sequence[Done], *, num_candidates: int, n: int, with_logprobs: bool) -> list[Done]:
    """Of each ``num_candidates`` answers, those to one prompt, the ``n`` best with their log-probabilities, if wanted.

    The best have the highest log-probability per token, as OpenAI documents ``best_of``.
    """
    best = []
    for first in range(0, len(done), num_candidates):
        candidates = sorted(done[first : first + num_candidates], key=_logprob_per_token, reverse=True)
        best += candidates[:n]
    return best if with_logprobs else [_without_logprobs(each) for each in best]


def _logprob_per_token(done: Done) -> float:
    logprobs = [token.chosen for token in done.completions[0].sequence.logprobs or ()]
    return sum(logprobs) / max(1, len(logprobs))


def _without_logprobs(done: Done) -> Done:
    (completion,) = done.completions
    return replace(done, completions=(replace(completion, sequence=replace(completion.sequence, logprobs=None)),))


def usage_of(done: Sequence[Done], n: int) -> dict[str, int]:
    """The numbers of tokens of all requests together; ``n``: answers to each prompt. Each prompt counts once."""
    is_beam_search = any(len(d.completions) > 1 for d in done)  # then one request gives all answers to its prompt
    requests_per_prompt = 1 if is_beam_search else n
    prompt = sum(d.usage.prompt_tokens for d in done[::requests_per_prompt])
    completion = sum(d.usage.completion_tokens for d in done)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat_part(index: int, delta: Json, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _text_part(index: int, text: str, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _scored_tokens(completion: Completion) -> list[Json] | None:
    """The tokens of the text with their log-probabilities, in the shape of chat completions; None if not asked for."""
    if completion.sequence.logprobs is None:
        return None
    tokens: list[Json] = []
    num_bytes, num_wanted = 0, len(completion.text.encode())
    for token_id, logprobs in zip(completion.sequence.token_ids, completion.sequence.logprobs, strict=True):
        piece = completion.pieces.get(token_id, b"")
        if token_id in completion.control_ids:
            continue
        if num_bytes >= num_wanted:
            break
        starts_text = completion.drops_first_space and not tokens
        piece = piece.removeprefix(b" ") if starts_text else piece
        num_bytes += len(piece)
        likeliest = [_scored_token(completion.pieces.get(i, b""), logprob) for i, logprob in logprobs.likeliest]
        tokens.append({**_scored_token(piece, logprobs.chosen), "top_logprobs": likeliest})
    return tokens


def _scored_token(piece: bytes, logprob: float) -> Json:
    return {"token": piece.decode(errors="replace"), "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(piece)}


def _in_columns(tokens: list[Json]) -> Json:
    """The same in the shape of text completions."""
    lengths = [len(token["token"]) for token in tokens]
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{t["token"]: t["logprob"] for t in token["top_logprobs"]} for token in tokens],
        "text_offset": [sum(lengths[:at]) for at in range(len(tokens))],
    }
