"""OpenAI's answers: choices, chunks, usage and log-probabilities."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field

from phi3_serve.core import Completion, Done
from phi3_serve.text.stop import StopText

_CONTROL_TOKEN = re.compile(rb"<\|[a-z0-9]+\|>|</?s>|<unk>")
_LEAST = -9999.0  # JSON has no infinities; OpenAI's own value for what is all but impossible


class Model(BaseModel):
    """One served model."""

    id: str = Field(description="The name to ask for.")
    object: Literal["model"] = Field(default="model", description="Always this.")
    created: int = Field(description="When this server started, seconds since 1970.")
    owned_by: str = Field(default="phi3-serve", description="Always this.")
    root: str = Field(description="Where the weights come from.")
    max_model_len: int | None = Field(description="Tokens of prompt and answer together; null where not known yet.")
    state: str = Field(description="ready, loading, scaled_to_zero, unplaceable or failed.")
    detail: str | None = Field(None, description="Why, in words.")


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[Model] = Field(description="In the order of the config.")


class UsageCounts(BaseModel):
    """Tokens read and made."""

    prompt_tokens: int = Field(description="Of the prompts, each counted once.")
    completion_tokens: int = Field(description="Of all answers.")
    total_tokens: int = Field(description="Both together.")


class Answer(BaseModel):
    """A chat completion or a text completion, as the ``openai`` SDK types them."""

    id: str = Field(description="Of this request.")
    object: str = Field(
        description="`chat.completion` or `text_completion`; of a stream's parts `chat.completion.chunk`."
    )
    created: int = Field(description="When, seconds since 1970.")
    model: str = Field(description="The model that answered.")
    choices: list[dict[str, Any]] = Field(
        description="The answers: `index`, `message` (or `text`; in a stream `delta`), `finish_reason`, `logprobs`."
    )
    usage: UsageCounts = Field(description="Tokens.")


@dataclass(slots=True)
class Shape:
    """What differs between the two endpoints, and what all parts of one answer share."""

    is_chat: bool
    model: str
    id: str
    stops: Sequence[str]
    echoed: Sequence[str] = ()  # what stands before the text of each choice
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completions: Sequence[Completion], counts: Mapping[str, int]) -> dict[str, Any]:
        """The plain answer."""
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        name = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(name), "choices": choices, "usage": counts}

    def chunk(
        self, choices: list[dict[str, Any]], counts: Mapping[str, int] | None, *, with_usage: bool
    ) -> dict[str, Any]:
        """One chunk of a stream. ``with_usage``: a chunk has the key, null but for the last."""
        name = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(name), "choices": choices, **({"usage": counts} if with_usage else {})}

    def first(self, index: int) -> dict[str, Any] | None:
        """What a choice of a stream begins with."""
        if self.is_chat:
            return self._part(index, {"role": "assistant", "content": ""}, None)
        return self._part(index, self.before(index), None) if self.before(index) else None

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """The next piece of a choice's text."""
        return self._part(index, {"content": text} if self.is_chat else text, None)

    def end(self, index: int, completion: Completion) -> dict[str, Any]:
        """How a choice ended, with the log-probabilities of all its tokens where they were asked for."""
        part = self._part(index, {} if self.is_chat else "", completion.sequence.finish_reason)
        return {**part, "logprobs": self._logprobs(completion, self._cut(completion.text))}

    def before(self, index: int) -> str:
        """What is echoed before a choice's text."""
        return self.echoed[index] if self.echoed else ""

    def _part(self, index: int, content: Any, finish_reason: str | None) -> dict[str, Any]:
        key = "delta" if self.is_chat else "text"
        return {"index": index, key: content, "logprobs": None, "finish_reason": finish_reason}

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        text = self.before(index) + self._cut(completion.text)
        content = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        )
        logprobs = self._logprobs(completion, text)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": completion.sequence.finish_reason}

    def _cut(self, text: str) -> str:
        stop = StopText(self.stops)
        return stop.add(text) + stop.finish()

    def _logprobs(self, completion: Completion, text: str) -> dict[str, Any] | None:
        if completion.sequence.logprobs is None:
            return None
        tokens = _scored_tokens(completion, text)
        return {"content": tokens, "refusal": None} if self.is_chat else _in_columns(tokens)

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def usage(done: Sequence[Done], *, answers_to_a_prompt: int) -> dict[str, int]:
    """The counts of all requests together; a prompt that got several answers counts once."""
    prompt = sum(d.usage.prompt_tokens for d in done[::answers_to_a_prompt])
    completion = sum(d.usage.completion_tokens for d in done)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _scored_tokens(completion: Completion, text: str) -> list[dict[str, Any]]:
    """Each token of ``text`` with its log-probability and those of the likeliest, as chat completions have them."""
    tokens: list[dict[str, Any]] = []
    num_bytes, wanted = 0, len(text.encode())
    for token_id, of_token in zip(completion.sequence.token_ids, completion.sequence.logprobs or (), strict=True):
        piece = completion.pieces.get(token_id, b"")
        if _CONTROL_TOKEN.fullmatch(piece):
            continue
        if num_bytes >= wanted:
            break
        piece = piece.removeprefix(b" ") if not tokens else piece  # decoders drop the first space
        num_bytes += len(piece)
        likeliest = [_scored(completion.pieces.get(i, b""), logprob) for i, logprob in of_token.likeliest]
        tokens.append({**_scored(piece, of_token.chosen), "top_logprobs": likeliest})
    return tokens


def _scored(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode(errors="replace"), "logprob": max(logprob, _LEAST), "bytes": list(piece)}


def _in_columns(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as text completions have it."""
    lengths = [len(token["token"]) for token in tokens]
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{t["token"]: t["logprob"] for t in token["top_logprobs"]} for token in tokens],
        "text_offset": [sum(lengths[:at]) for at in range(len(tokens))],
    }
