"""What is added to the scores of single tokens, whatever the tokens before them are.

``processors`` does the same on the host, together with what needs these tokens.
"""

from array import array
from typing import NamedTuple

from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreSettings

PROCESSORS = frozenset(
    {"sequence_bias", "bad_words", "bad_words_of_answer", "min_length", "suppress", "begin_suppress"}
)
"""The processors of ``processors`` that may be no more than such additions."""

MOST = 64  # tokens of a row; the kernel adds one after another


class Phase(NamedTuple):
    """What the length of a sequence says about the additions."""

    must_go_on: bool = False  # the minimum length is not reached
    begins: bool = False  # the first token is chosen

    @classmethod
    def of(cls, settings: ScoreSettings, length: int) -> "Phase":
        """``length``: tokens of prompt and answer, unread ones included."""
        return cls(length < settings.min_length, length == settings.begin_index)


def are_editable(settings: ScoreSettings) -> bool:
    """Whether ``edits`` has all that these processors of ``settings`` do, and the additions are few."""
    biases = (settings.biases, settings.bans, settings.bans_of_answer)
    if any(of.needs_history for of in biases):
        return False
    num_listed = len(settings.parameters.suppress_tokens) + len(settings.parameters.begin_suppress_tokens)
    return num_listed <= MOST and len(edits(settings, Phase(True, True))) <= MOST


def edits(settings: ScoreSettings, phase: Phase) -> dict[int, float]:
    """What is added to the score of each token, before penalties. What is ruled out gets -inf."""
    p = settings.parameters
    added: dict[int, float] = {}
    for biases in (settings.biases, settings.bans, settings.bans_of_answer):
        if (found := biases.after(array("q"))) is not None:
            for token, value in zip(*(of.tolist() for of in found), strict=True):
                added[token] = added.get(token, 0.0) + value
    for tokens, are_ruled_out in (
        (p.suppress_tokens, True),
        (settings.min_length_ids, phase.must_go_on),
        (p.begin_suppress_tokens, phase.begins),
    ):
        if are_ruled_out:
            added |= dict.fromkeys(tokens, RULED_OUT)
    return added
