"""What a request has taken, in tokens and in seconds."""

from dataclasses import dataclass

from phi3_serve.pickled_by_name import pickled_by_name


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and tokens generated."""

    prompt_tokens: int
    completion_tokens: int


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long a request took in its engine, in seconds."""

    queue_s: float  # from its arrival to the step that began it
    prompt_s: float  # from there until its first token was chosen
    answer_s: float  # from there until its last token was chosen
