"""How many tokens a prompt may have, and why."""

from typing import NamedTuple

from phi3_serve.parameters import MAX_TOKENS_LISTED


class TokenLimit(NamedTuple):
    """The most tokens of a prompt, and what an error says of this number."""

    most: int
    reason: str


def of_context(context_length: int) -> TokenLimit:
    """The limit of a prompt that the model reads as a whole."""
    return TokenLimit(context_length, f"this model's context holds {context_length}, answer included")


def of_encoding(context_length: int) -> TokenLimit:
    """The limit of a text that is only counted, or cut before the model reads it: encoding it must not take seconds."""
    most = max(context_length, MAX_TOKENS_LISTED)
    return TokenLimit(most, f"at most {most} are encoded")
