"""The answers of ``/v1/completions``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from phi3_serve.api.openai.response_builder import Json, ResponseBuilder
from phi3_serve.api.scored_tokens import finite
from phi3_serve.api.tools.answer import Piece, Words
from phi3_serve.core.completion import Completion, PromptText, TextToken
from phi3_serve.core.generated_sequence import FinishReason


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


def _text_part(index: int, text: str, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
