"""An answer as text, and the tokens of a text."""

from dataclasses import dataclass

from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.pickled_by_name import pickled_by_name


@pickled_by_name
@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token that could stand at a place."""

    token_id: int
    piece: bytes
    logprob: float


@pickled_by_name
@dataclass(frozen=True, slots=True)
class TextToken:
    """A token of a text."""

    token_id: int
    piece: bytes  # what the text has of it; a control token has its name, an unknown id nothing
    offset: int  # characters of the text before it
    in_text: bool = True  # False: it leaves no trace in the text, or lies behind a stop string
    logprob: float | None = None  # if requested; the first token of a prompt has none
    likeliest: tuple[LikelyToken, ...] = ()  # the most likely first
    rank: int | None = None  # see ``TokenLogprobs``


@pickled_by_name
@dataclass(frozen=True, slots=True)
class PromptText:
    """The prompt as the model has read it: its text, with control tokens by their names, and its tokens."""

    text: str
    tokens: tuple[TextToken, ...]


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Completion:
    """One generated sequence as text."""

    text: str
    sequence: GeneratedSequence
    tokens: tuple[TextToken, ...] = ()  # if requested, all of the sequence
    stop_string: str | None = None  # the string of ``stop`` that ended the text
