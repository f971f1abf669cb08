"""The answers of ``/v1/chat/completions``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from phi3_serve.api.openai.calls import CallFormat
from phi3_serve.api.openai.response_builder import Json, ResponseBuilder
from phi3_serve.api.scored_tokens import scored
from phi3_serve.api.tools.answer import AnswerReader, Piece
from phi3_serve.core.completion import Completion, PromptText, TextToken
from phi3_serve.core.generated_sequence import FinishReason


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


def _chat_part(index: int, delta: Json, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
