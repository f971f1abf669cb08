"""Tokens with their log-probabilities, as OpenAI writes them in chats and in responses."""

from collections.abc import Callable
from typing import Any

from phi3_serve.core.completion import TextToken

_MIN_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot express

Json = dict[str, Any]


def as_text(token_id: int, piece: bytes) -> str:
    """The name of a token: its text, in which a part of a character is a replacement character."""
    return piece.decode(errors="replace")


def scored(token: TextToken, name: Callable[[int, bytes], str] = as_text) -> Json:
    """A token and the likeliest ones in its place. ``name`` makes the text that stands for one of them."""
    likeliest = [_scored(one.token_id, one.piece, one.logprob, name) for one in token.likeliest]
    return {**_scored(token.token_id, token.piece, token.logprob, name), "top_logprobs": likeliest}


def finite(logprob: float | None) -> float | None:
    """``logprob`` as a number that JSON has."""
    return None if logprob is None else max(logprob, _MIN_LOGPROB)


def _scored(token_id: int, piece: bytes, logprob: float | None, name: Callable[[int, bytes], str]) -> Json:
    return {"token": name(token_id, piece), "logprob": finite(logprob), "bytes": list(piece)}
