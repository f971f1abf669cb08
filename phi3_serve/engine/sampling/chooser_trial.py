"""Rows for which only one token is right, to try the kernel that chooses tokens on the device that it runs on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from phi3_serve.engine.kernels import triton_penalties, triton_warpers

FLOATS = (*triton_penalties.FLOATS, *triton_warpers.FLOATS)
OFF = {
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
GREEDY = {"temperature": 0.0}

# What leaves one token of a row in which the likeliest has a tenth of the probability, and the number of the likeliest
# in the counts. With typical_p, where it is counted and where "added" is added to another score, another one is left.
CERTAIN: tuple[tuple[dict[str, float], int], ...] = (
    (GREEDY, 0),
    ({"temperature": 0.7, "top_k": 1}, 0),
    ({"top_p": 1e-6}, 0),
    ({"min_p": 1.0}, 0),
    ({"typical_p": 1e-6}, 0),
    ({"epsilon_cutoff": 0.05}, 0),
    ({"eta_cutoff": 0.9}, 0),
    ({"encoder_repetition_penalty": 5.0} | GREEDY, 1),
    ({"repetition_penalty": 5.0} | GREEDY, 2),
    ({"presence_penalty": 10.0, "top_k": 1}, 2),
    ({"frequency_penalty": 1.0} | GREEDY, 20),
    ({"added": 20.0} | GREEDY, 0),
)
TIMES = 3  # that each is tried, because a kernel without a warper draws the right token by chance


@dataclass(frozen=True, slots=True)
class ChooserTrial:
    """Arguments of ``triton_sampling.choose_tokens``, and what it has to choose and to count."""

    logits: Tensor
    floats: Tensor
    ints: Tensor
    edits: tuple[Tensor, Tensor]
    counts: Tensor
    tokens: Tensor
    expected: list[int]
    expected_counts: Tensor

    @classmethod
    def like(cls, logits: Tensor) -> "ChooserTrial":
        """For a vocabulary, a device and a dtype as those of ``logits`` [rows, vocabulary]."""
        rows, device, vocab_size = CERTAIN * TIMES, logits.device, logits.shape[1]
        expected = [(number + 1) * vocab_size // (len(rows) + 1) for number in range(len(rows))]
        ints, counts = [], torch.zeros(len(rows), vocab_size, dtype=torch.int32)
        for number, (given, count) in enumerate(rows):
            top_k, last = int(given.get("top_k", 0)), number + ("added" in given)
            ints.append((number if count else -1, given.get("temperature") != 0, top_k, 1, number, last))
            counts[number, expected[number] - 1] = count
        expected_counts = counts.clone()
        for number, (_, count) in enumerate(rows):
            expected_counts[number, expected[number]] = 2 if count else 0
        scores = [_scores(vocab_size, token, *row) for token, row in zip(expected, rows, strict=True)]
        return cls(
            torch.stack(scores).to(logits),
            torch.tensor([[given.get(name, OFF[name]) for name in FLOATS] for given, _ in rows], device=device),
            torch.tensor(ints, dtype=torch.int32, device=device),
            (
                torch.tensor(expected, dtype=torch.int32, device=device),
                torch.tensor([given.get("added", 0.0) for given, _ in rows], device=device),
            ),
            counts.to(device),
            torch.empty(len(rows), dtype=torch.int32, device=device),
            expected,
            expected_counts,
        )

    def problem(self) -> str | None:
        """What is wrong with the choice that was made, or None. It waits for the device."""
        if (found := self.tokens.tolist()) != self.expected:
            return f"it chose {found} instead of {self.expected}"
        return None if torch.equal(self.counts.cpu(), self.expected_counts) else "it counted the tokens wrongly"


def _scores(vocab_size: int, expected: int, given: dict[str, float], count: int) -> Tensor:
    """Those of a row that is nearly flat but for its likeliest token, and for ``expected`` if that is another one."""
    scores = torch.randn(vocab_size, generator=torch.Generator().manual_seed(0)) * 0.03
    is_typical = "typical_p" in given
    likeliest = expected - 1 if is_typical or count or "added" in given else expected
    scores[likeliest] = math.log((vocab_size - 1) / 9)
    if is_typical:  # its information is the entropy
        logprobs = scores.log_softmax(0)
        scores[expected] = scores.logsumexp(0) + (logprobs.exp() * logprobs).sum()
    elif count:
        scores[expected] = scores[likeliest] / 2
    return scores
