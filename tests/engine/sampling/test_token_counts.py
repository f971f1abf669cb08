"""When counts of tokens on the device are right, and when they are counted again; and penalties from them."""

import random
from array import array
from collections import Counter
from typing import Any

import pytest
import torch

from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.sampling.penalties import are_countable, penalised
from phi3_serve.engine.sampling.processors import ScoreRow, ScoreSettings, process
from phi3_serve.engine.sampling.token_counts import TokenCounts, counted
from tests.engine.asking import PROMPT, request

VOCAB = 20
CPU = torch.device("cpu")


def sequence(*prompt: int) -> CachedSequence:
    return CachedSequence(prompt)


class Watched(TokenCounts):
    """Notes which slots are counted again."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots, VOCAB, CPU)
        self.recounted: list[int] = []

    def _count(self, sequence: CachedSequence, slot: int) -> None:
        super()._count(sequence, slot)
        self.recounted.append(slot)

    def choose(self, tokens: dict[CachedSequence, int], *, is_read: bool = True) -> list[int]:
        """As the device chooses ``tokens``; returns the slots that were counted again."""
        self.recounted.clear()
        for slot, (of, token) in zip(self.slots(list(tokens)), tokens.items(), strict=True):
            if not of.num_unread:
                assert self.on_device[slot].tolist() == numbers(of)
            self.on_device[slot, token] += 2
            of.expect_token(0)
            if is_read:
                of.append(token)
        return self.recounted


def numbers(of: CachedSequence) -> list[int]:
    """Counted one by one."""
    prompt, answer = of.tokens[: of.num_prompt_tokens], Counter(of.tokens[of.num_prompt_tokens :])
    return [2 * answer[token] + (token in prompt) for token in range(VOCAB)]


def test_tokens_that_the_device_chooses_are_counted_there() -> None:
    counts, one, other = Watched(3), sequence(5, 5, 7), sequence(1)
    assert len(counts.choose({one: 5})) == 1
    assert len(counts.choose({one: 9, other: 1})) == 1  # the other
    for token in (9, 5, 19):
        assert counts.choose({one: token, other: token}) == []
        assert counts.choose({other: token, one: token}) == []  # in another order


def test_the_next_token_is_chosen_before_the_last_one_is_read() -> None:
    counts, one = Watched(2), sequence(3)
    counts.choose({one: 4}, is_read=False)
    assert counts.choose({one: 6}, is_read=False) == []
    one.append(4)
    assert counts.choose({one: 4}, is_read=False) == []
    for token in (6, 4):
        one.append(token)
    assert counts.choose({one: 0}) == []


def test_a_token_that_the_host_chose_makes_counts_stale() -> None:
    counts, one = Watched(2), sequence(3)
    counts.choose({one: 4})
    one.append(8)
    assert len(counts.choose({one: 4})) == 1
    assert counts.choose({one: 4}) == []


def test_a_slot_may_be_taken_while_its_sequence_does_not_run() -> None:
    counts, one, two, three = Watched(2), sequence(1), sequence(2), sequence(3)
    counts.choose({one: 4, two: 5})
    assert len(counts.choose({two: 4, three: 5})) == 1
    assert len(counts.choose({one: 4, two: 5})) == 1
    assert counts.choose({one: 4, two: 5}) == []


def test_a_token_after_the_end_of_a_sequence_is_not_in_the_counts_of_the_next_one() -> None:
    counts, ended = Watched(1), sequence(1)
    counts.choose({ended: 4})
    counts.choose({ended: 6}, is_read=False)  # one step late
    del ended
    follower = sequence(1, 2, 3)  # as many tokens as are counted
    assert counts.choose({follower: 4}) == [0]


def test_forks_have_counts_of_their_own() -> None:
    counts, one = Watched(3), sequence(1)
    counts.choose({one: 4})
    twin = one.fork(BlockManager(4))
    assert len(counts.choose({one: 5, twin: 6})) == 1
    assert counts.choose({one: 5, twin: 5}) == []


def test_counts_are_not_made_of_unread_tokens() -> None:
    counts, one, other = Watched(1), sequence(1), sequence(2)
    counts.choose({one: 4}, is_read=False)
    counts.choose({other: 4})
    with pytest.raises(RuntimeError, match="unread token were lost"):
        counts.slots([one])
    one.append(4)
    assert counts.choose({one: 5}) == [0]


@pytest.mark.parametrize(
    ("given", "is_countable"),
    [
        ({}, True),
        ({"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -1.0}, True),
        ({"encoder_repetition_penalty": 2.0}, True),
        ({"repetition_penalty": 1.2, "repeat_last_n": 4, "max_new_tokens": 9}, False),
        ({"repetition_penalty": 1.2, "repeat_last_n": len(PROMPT) + 9, "max_new_tokens": 9}, True),
        ({"repetition_penalty": 1.2, "repeat_last_n": 0}, True),
        ({"repetition_penalty": 1e-20}, False),
        ({"encoder_repetition_penalty": 1e20}, False),
    ],
    ids=str,
)
def test_what_counts_are_enough_for(loaded: LoadedModel, given: dict[str, Any], is_countable: bool) -> None:
    assert are_countable(ScoreSettings(request(loaded, **given))) is is_countable


def test_penalties_from_counts_are_those_from_tokens(loaded: LoadedModel) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    choices = {
        "encoder_repetition_penalty": (1.0, 0.7, 1.3),
        "repetition_penalty": (1.0, 0.6, 1.7),
        "presence_penalty": (0.0, 0.7, -1.1),
        "frequency_penalty": (0.0, 0.3, -0.9),
        "repeat_last_n": (-1, -1, 0, 10**6),
    }
    rows, vocab = [], 704
    for _ in range(60):
        given: dict[str, Any] = {name: draw.choice(values) for name, values in choices.items()}
        history = [*PROMPT, *(draw.randrange(vocab) for _ in range(draw.choice((0, 1, 300))))]
        rows.append(ScoreRow(ScoreSettings(request(loaded, **given)), array("q", history), 0))
    scores = torch.randn(len(rows), vocab).masked_fill(torch.rand(len(rows), vocab) < 0.1, -torch.inf)
    expected = scores.clone()
    process(expected, rows, scores)
    counts = []
    for row in rows:
        of = CachedSequence(PROMPT)
        of.tokens.extend(row.history[len(PROMPT) :])
        counts.append(torch.from_numpy(counted(of, vocab)))
    assert torch.equal(penalised(scores, torch.stack(counts), [row.settings for row in rows]), expected)
