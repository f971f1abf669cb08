"""The best of several sampled answers."""

from collections.abc import Sequence

from phi3_serve.core.event import Done


def best_answers(done: Sequence[Done], *, num_candidates: int, n: int) -> list[Done]:
    """Of each ``num_candidates`` answers, those to one prompt, the ``n`` best.

    The best have the highest log-probability per token, as OpenAI documents ``best_of``.
    """
    best = []
    for first in range(0, len(done), num_candidates):
        candidates = sorted(done[first : first + num_candidates], key=_logprob_per_token, reverse=True)
        best += candidates[:n]
    return best


def _logprob_per_token(done: Done) -> float:
    logprobs = [token.chosen for token in done.completions[0].sequence.logprobs or ()]
    return sum(logprobs) / max(1, len(logprobs))
