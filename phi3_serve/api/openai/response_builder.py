"""OpenAI's answers, plain and streamed: the parts that both endpoints share.

``token_ids``, ``prompt_token_ids`` and ``prompt_logprobs`` are vLLM's (at 002032ee, vllm/entrypoints/openai).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from phi3_serve.api.openai.shown import Shown
from phi3_serve.api.scored_tokens import as_text, finite
from phi3_serve.api.tools.answer import AnswerReader, Piece
from phi3_serve.core.completion import Completion, PromptText, TextToken
from phi3_serve.core.event import Done
from phi3_serve.core.generated_sequence import FinishReason

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
