"""OpenAI's answers: choices of plain answers and of streams, usage, log-probabilities.

``token_ids``, ``prompt_token_ids`` and ``prompt_logprobs`` are vLLM's (at 002032ee, vllm/entrypoints/openai).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from phi3_serve.api.openai.calls import CallFormat
from phi3_serve.api.openai.shown import Shown
from phi3_serve.api.scored_tokens import as_text, finite, scored
from phi3_serve.api.tools.answer import AnswerReader, Piece, Words
from phi3_serve.core.completion import Completion, PromptText, TextToken
from phi3_serve.core.event import Done
from phi3_serve.core.generated_sequence import FinishReason
from phi3_serve.core.usage import Usage

Json = dict[str, Any]


@dataclass(kw_only=True)
class ResponseBuilder(ABC):
    """Builds the JSON of one answer, plain or streamed: the parts that both endpoints share."""

    object_name: ClassVar[str]
    chunk_name: ClassVar[str]
    opens_together: ClassVar[bool] = False  # whether all choices of a stream are opened, in order, before any goes on
    of_whole: ClassVar[Sequence[str]] = ()  # fields of a choice that belong to the whole answer or chunk

    id: str
    model: str
    shown: Shown = field(default_factory=Shown)
    warnings: Sequence[str] = ()  # of fields of the request
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, done: Sequence[Done], usage: Mapping[str, int]) -> Json:
        """The plain answer."""
        pairs = [(completion, d.prompt) for d in done for completion in d.completions]
        choices = [self._choice(index, *pair) for index, pair in enumerate(pairs)]
        return {
            **self._head(self.object_name),
            "choices": choices,
            "usage": usage,
            **self._moved(choices),
            **_warnings([*self.warnings, *(w for d in done for w in d.warnings)]),
        }

    def chunk(self, part: Json, usage: Json, warnings: Sequence[str] = ()) -> Json:
        """One chunk of a stream. ``usage``: its field, or nothing."""
        choices = [part]
        return {
            **self._head(self.chunk_name),
            "choices": choices,
            **usage,
            **self._moved(choices),
            **_warnings(warnings),
        }

    def usage_chunk(self, usage: Mapping[str, int]) -> Json:
        """The chunk that ends a stream whose client asked for the usage."""
        return {**self._head(self.chunk_name), "choices": [], "usage": usage}

    @abstractmethod
    def opening_parts(self, index: int, prompt: PromptText | None) -> list[Json]:
        """What a choice begins with in a stream."""

    @abstractmethod
    def parts(
        self, index: int, pieces: Sequence[Piece], tokens: Sequence[TextToken], prompt: PromptText | None
    ) -> list[Json]:
        """The next pieces of a choice in a stream, and its tokens. ``prompt``: that of the choice."""

    @abstractmethod
    def last_part(
        self,
        index: int,
        finish_reason: FinishReason,
        tokens: Sequence[TextToken],
        prompt: PromptText | None,
        *,
        has_calls: bool,
    ) -> Json:
        """The end of a choice in a stream, and the tokens that are left."""

    def reader(self) -> AnswerReader:
        """Reads one answer of a stream."""
        return AnswerReader(None)

    def of_prompt(self, prompt: PromptText | None) -> Json:
        """Fields of the first part of a choice."""
        shows = prompt is not None and self.shown.token_ids
        return {"prompt_token_ids": [token.token_id for token in prompt.tokens]} if shows and prompt else {}

    def listed(self, tokens: Iterable[TextToken]) -> list[TextToken]:
        """The ``tokens`` that have a log-probability in the answer.

        Behind an echoed prompt all are listed: lm-evaluation-harness takes the last one for the only one that is no
        part of the prompt. By their ids all are listed, too: they are those of ``token_ids``.
        """
        shows_all = self.shown.prompt or self.shown.tokens_as_ids
        return [token for token in tokens if token.in_text or shows_all] if self.shown.logprobs else []

    @abstractmethod
    def _choice(self, index: int, completion: Completion, prompt: PromptText | None) -> Json:
        """One choice of the plain answer."""

    def _moved(self, choices: Sequence[Json]) -> Json:
        return {name: choice.pop(name) for choice in choices for name in self.of_whole if name in choice}

    def _head(self, name: str) -> Json:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def _ids(self, tokens: Iterable[TextToken]) -> Json:
        return {"token_ids": [token.token_id for token in tokens]} if self.shown.token_ids else {}

    def _name(self, token_id: int, piece: bytes) -> str:
        return f"token_id:{token_id}" if self.shown.tokens_as_ids else as_text(token_id, piece)

    def _prompt_logprobs(self, prompt: PromptText | None) -> Json:
        """For each token of the prompt null, or the token ids that are known, and what is known of each."""
        shows = prompt is not None and self.shown.prompt_logprobs
        return {"prompt_logprobs": [_by_id(token) for token in prompt.tokens]} if shows and prompt else {}


@dataclass(kw_only=True)
class ChatResponseBuilder(ResponseBuilder):
    """Builds the answers of ``/v1/chat/completions``. ``echoed``: what the answer begins with."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    opens_together = True  # the SDK's stream() fails if the first chunk is not of choice 0
    of_whole = ("prompt_token_ids", "prompt_logprobs")

    role: str = "assistant"
    echoed: str = ""
    calls: CallFormat = field(default_factory=CallFormat)

    def opening_parts(self, index: int, prompt: PromptText | None) -> list[Json]:
        """The role, and what is echoed."""
        opening: list[Json] = [{"role": self.role, "content": self.calls.opening}]
        deltas = [*opening, *([{"content": self.echoed}] if self.echoed else [])]
        return [_chat_part(index, delta) for delta in deltas]

    def parts(
        self, index: int, pieces: Sequence[Piece], tokens: Sequence[TextToken], prompt: PromptText | None
    ) -> list[Json]:
        """See the base class. The first part has all tokens."""
        deltas = [delta for piece in pieces if (delta := self.calls.delta(piece)) is not None]
        return [self._part(index, delta, () if number else tokens) for number, delta in enumerate(deltas or [{}])]

    def last_part(
        self,
        index: int,
        finish_reason: FinishReason,
        tokens: Sequence[TextToken],
        prompt: PromptText | None,
        *,
        has_calls: bool,
    ) -> Json:
        """See the base class."""
        # The content of an answer without calls is a text, also an empty one.
        delta = {"content": ""} if self.calls.opening is None and not has_calls else {}
        return self._part(index, delta, tokens, self.calls.finish_reason(finish_reason, has_calls=has_calls))

    def reader(self) -> AnswerReader:
        """See the base class."""
        return self.calls.reader()

    def _part(self, index: int, delta: Json, tokens: Sequence[TextToken], finish_reason: str | None = None) -> Json:
        logprobs = self._logprobs(tokens) if self.listed(tokens) else None
        return {**_chat_part(index, delta, finish_reason, logprobs), **self._ids(tokens)}

    def _choice(self, index: int, completion: Completion, prompt: PromptText | None) -> Json:
        answer, reason = self.calls.answer(completion), completion.sequence.finish_reason
        text = self.echoed + answer.text
        message = {"role": self.role, "content": text if text or not answer.calls else None, "refusal": None}
        return {
            "index": index,
            "message": {**message, **self.calls.fields(answer.calls)},
            "logprobs": self._logprobs(completion.tokens) if self.shown.logprobs else None,
            "finish_reason": self.calls.finish_reason(reason, has_calls=bool(answer.calls)),
            **self._ids(completion.tokens),
            **self.of_prompt(prompt),
            **self._prompt_logprobs(prompt),
        }

    def _logprobs(self, tokens: Iterable[TextToken]) -> Json:
        return {"content": [scored(token, self._name) for token in self.listed(tokens)], "refusal": None}


@dataclass(kw_only=True)
class CompletionResponseBuilder(ResponseBuilder):
    """Builds the answers of ``/v1/completions``."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def opening_parts(self, index: int, prompt: PromptText | None) -> list[Json]:
        """The echoed prompt."""
        if prompt is None or not self.shown.prompt:
            return []
        logprobs = self._columns(prompt.tokens) if self.shown.logprobs else None
        return [{**_text_part(index, prompt.text, None, logprobs), **self._ids(())}]

    def parts(
        self, index: int, pieces: Sequence[Piece], tokens: Sequence[TextToken], prompt: PromptText | None
    ) -> list[Json]:
        """See the base class."""
        text = "".join(piece.text for piece in pieces if isinstance(piece, Words))
        return [self._part(index, text, tokens, prompt)]

    def last_part(
        self,
        index: int,
        finish_reason: FinishReason,
        tokens: Sequence[TextToken],
        prompt: PromptText | None,
        *,
        has_calls: bool,
    ) -> Json:
        """See the base class."""
        return self._part(index, "", tokens, prompt, finish_reason)

    def _part(
        self,
        index: int,
        text: str,
        tokens: Sequence[TextToken],
        prompt: PromptText | None,
        finish_reason: FinishReason | None = None,
    ) -> Json:
        logprobs = self._columns(self._behind(prompt, tokens)) if self.listed(tokens) else None
        return {**_text_part(index, text, finish_reason, logprobs), **self._ids(tokens)}

    def _choice(self, index: int, completion: Completion, prompt: PromptText | None) -> Json:
        text = completion.text if self.shown.answer else ""
        tokens = completion.tokens if self.shown.answer else ()
        listed = self._behind(prompt, tokens)
        if prompt is not None and self.shown.prompt:
            text, listed = prompt.text + text, [*prompt.tokens, *listed]
        logprobs = self._columns(listed) if self.shown.logprobs else None
        finish_reason = completion.sequence.finish_reason if self.shown.answer else "length"
        return {
            **_text_part(index, text, finish_reason, logprobs),
            **self._ids(tokens),
            **self.of_prompt(prompt),
            **self._prompt_logprobs(prompt),
        }

    def _behind(self, prompt: PromptText | None, tokens: Sequence[TextToken]) -> list[TextToken]:
        """``tokens`` with their places in a text that begins with the prompt, if it is echoed."""
        if prompt is None or not self.shown.prompt:
            return list(tokens)
        return [replace(token, offset=len(prompt.text) + token.offset) for token in tokens]

    def _columns(self, tokens: Iterable[TextToken]) -> Json:
        listed = self.listed(tokens)
        return {
            "tokens": [self._name(token.token_id, token.piece) for token in listed],
            "token_logprobs": [finite(token.logprob) for token in listed],
            "top_logprobs": [self._top_logprobs(token) for token in listed],
            "text_offset": [token.offset for token in listed],
        }

    def _top_logprobs(self, token: TextToken) -> dict[str, float | None] | None:
        """The likeliest tokens and the token itself by their texts. Of tokens with the same text, the likeliest one."""
        if token.logprob is None:
            return None
        found: dict[str, float | None] = {}
        for one in token.likeliest:
            found.setdefault(self._name(one.token_id, one.piece), finite(one.logprob))
        found.setdefault(self._name(token.token_id, token.piece), finite(token.logprob))
        return found


def _by_id(token: TextToken) -> Json | None:
    """VLLM's ``dict[int, Logprob]`` (vllm/logprobs.py): first the token itself, then the likeliest others."""
    if token.logprob is None:
        return None
    found = {str(token.token_id): _known(token.token_id, token.logprob, token.rank, token.piece)}
    for rank, one in enumerate(token.likeliest, 1):
        found.setdefault(str(one.token_id), _known(one.token_id, one.logprob, rank, one.piece))
    return found


def _known(token_id: int, logprob: float, rank: int | None, piece: bytes) -> Json:
    return {"logprob": finite(logprob), "rank": rank, "decoded_token": as_text(token_id, piece)}


def _warnings(warnings: Iterable[str]) -> Json:
    """Each warning once; nothing if there is none."""
    each = list(dict.fromkeys(warnings))
    return {"warnings": each} if each else {}


def best_answers(done: Sequence[Done], *, num_candidates: int, n: int) -> list[Done]:
    """Of each ``num_candidates`` answers, those to one prompt, the ``n`` best.

    The best have the highest log-probability per token, as OpenAI documents ``best_of``.
    """
    best = []
    for first in range(0, len(done), num_candidates):
        candidates = sorted(done[first : first + num_candidates], key=_logprob_per_token, reverse=True)
        best += candidates[:n]
    return best


def _logprob_per_token(done: Done) -> float:
    logprobs = [token.chosen for token in done.completions[0].sequence.logprobs or ()]
    return sum(logprobs) / max(1, len(logprobs))


def usage_of(done: Sequence[Done], n: int, *, has_answer: bool = True) -> dict[str, int]:
    """The numbers of tokens of all requests together; ``n``: answers to each prompt. Each prompt counts once."""
    is_beam_search = any(len(d.completions) > 1 for d in done)  # then one request gives all answers to its prompt
    requests_per_prompt = 1 if is_beam_search else n
    prompt = sum(d.usage.prompt_tokens for d in done[::requests_per_prompt])
    return usage_json(Usage(prompt, sum(d.usage.completion_tokens for d in done) if has_answer else 0))


def usage_json(usage: Usage) -> dict[str, int]:
    """``usage`` as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _chat_part(index: int, delta: Json, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _text_part(index: int, text: str, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
