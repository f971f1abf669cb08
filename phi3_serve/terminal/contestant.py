"""One column of a comparison: a model with settings, and how it has answered."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3_serve.errors import Phi3ServeError
from phi3_serve.terminal.answer import Answer


@dataclass(slots=True)
class Contestant:
    """A model with settings, and its answer, or the error that came instead."""

    model: str
    settings: Mapping[str, Any]  # generate parameters by name
    answer: Answer | None = None
    error: Phi3ServeError | None = None

    @property
    def settings_in_words(self) -> str:
        """The settings, as they are typed."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items()) or "default settings"

    @property
    def text(self) -> str:
        """The answer, or all of them, numbered, if the settings ask for several; else the error."""
        if self.error is not None or self.answer is None:
            return "" if self.error is None else self.error.message
        texts = self.answer.texts
        if len(texts) < 2:
            return self.answer.text
        return "\n\n".join(f"{index + 1}. {text}" for index, text in sorted(texts.items()))

    @property
    def end(self) -> str:
        """Why the answer ended."""
        if self.answer is None or self.error is not None:
            return "error"
        return "at its maximum length" if self.answer.was_cut else "by itself"

    @property
    def tokens_per_s(self) -> float | None:
        """All tokens of the answer by all of its seconds."""
        answer = self.answer
        return answer.tokens / answer.seconds if answer is not None and answer.tokens else None

    @property
    def token_probability(self) -> float | None:
        """The geometric mean of the probabilities of all tokens, 0 to 1: how sure the model was."""
        logprobs = self.answer.logprobs if self.answer is not None else ()
        return math.exp(statistics.fmean(logprobs)) if logprobs else None

    def as_json(self) -> dict[str, Any]:
        """Everything about it."""
        answer = self.answer
        return {
            "model": self.model,
            "settings": dict(self.settings),
            "texts": [] if answer is None else [text for _, text in sorted(answer.texts.items())],
            "error": None if self.error is None else self.error.message,
            "end": self.end,
            "prompt_tokens": 0 if answer is None else answer.prompt_tokens,
            "tokens": 0 if answer is None else answer.tokens,
            "first_token_s": None if answer is None else answer.first_after_s,
            "seconds": None if answer is None else answer.seconds,
            "tokens_per_s": self.tokens_per_s,
            "token_probability": self.token_probability,
        }
