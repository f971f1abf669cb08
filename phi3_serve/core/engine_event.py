"""The events of a request, from an engine to its replica."""

from dataclasses import dataclass

from phi3_serve.core.event import Failed
from phi3_serve.core.generated_sequence import GeneratedSequence, TokenLogprobs
from phi3_serve.core.usage import Timings


@dataclass(frozen=True, slots=True)
class Started:
    """The request runs from the next step on; only after ``Engine.announce_start``."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The log-probabilities of all tokens of the prompt but the first; only with ``prompt_logprobs``.

    It comes once, before the first token of the answer. A prompt of one token has none.
    """

    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The next token ids of a streamed sequence, and their log-probabilities if requested."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequences of a request, best first; always the last engine event."""

    sequences: tuple[GeneratedSequence, ...]
    timings: Timings | None = None


EngineEvent = Started | ScoredPrompt | NewTokens | Finished | Failed
