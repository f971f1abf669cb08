"""The events of a request, from a replica to the ingress."""

from dataclasses import dataclass

from phi3_serve.core.completion import Completion, PromptText, TextToken
from phi3_serve.core.usage import Timings, Usage
from phi3_serve.errors import Phi3ServeError
from phi3_serve.pickled_by_name import pickled_by_name

# Seconds. A request without news repeats its state this often, so that the ingress notices the loss of a whole node.
SIGN_OF_LIFE_INTERVAL_S = 10.0


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits in its replica, and nothing of it has run. A request that begins soon has no such event.

    While it waits, the event is repeated as a sign of life.
    """


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Begun:
    """The request runs. It is the first event of this kind after Queued; later ones are signs of life."""


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a streamed answer. All but the text only if requested."""

    text: str
    tokens: tuple[TextToken, ...] = ()  # of this piece
    prompt: PromptText | None = None  # in the first piece
    usage: Usage | None = None  # up to this piece


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer; always the last event."""

    completions: tuple[Completion, ...]
    usage: Usage
    warnings: tuple[str, ...] = ()  # parameters that could not have their effect
    prompt: PromptText | None = None  # if requested
    timings: Timings | None = None


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error; always the last event."""

    error: Phi3ServeError
    timings: Timings | None = None  # if the engine had begun it


Event = Queued | Begun | Delta | Done | Failed
