"""Rows for which only one token is right, to try the kernel that chooses tokens on the device that it runs on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from phi3_serve.engine.kernels.triton_warpers import FLOATS

OFF = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}

# What leaves one token of a row in which the likeliest has a tenth of the probability.
CERTAIN: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},  # greedy
    {"temperature": 0.7, "top_k": 1},
    {"top_p": 1e-6},
    {"min_p": 1.0},
    {"typical_p": 1e-6},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.9},
)
TIMES = 3  # that each is tried, because a kernel without a warper draws the right token by chance


@dataclass(frozen=True, slots=True)
class ChooserTrial:
    """Arguments of ``triton_sampling.choose_tokens``, and what it has to choose."""

    logits: Tensor
    floats: Tensor
    ints: Tensor
    tokens: Tensor
    expected: list[int]

    @classmethod
    def like(cls, logits: Tensor) -> "ChooserTrial":
        """For a vocabulary, a device and a dtype as those of ``logits`` [rows, vocabulary]."""
        rows, device = CERTAIN * TIMES, logits.device
        count = len(rows)
        floats = [[given.get(name, OFF[name]) for name in FLOATS] for given in rows]
        ints = [(given.get("temperature") != 0, int(given.get("top_k", 0)), 1) for given in rows]
        expected = [(number + 1) * logits.shape[1] // (count + 1) for number in range(count)]
        scores = [_scores(logits.shape[1], token, given) for token, given in zip(expected, rows, strict=True)]
        return cls(
            torch.stack(scores).to(logits),
            torch.tensor(floats, device=device),
            torch.tensor(ints, dtype=torch.int32, device=device),
            torch.empty(count, dtype=torch.int32, device=device),
            expected,
        )


def _scores(vocab_size: int, expected: int, given: dict[str, float]) -> Tensor:
    """Those of a row that is nearly flat but for its likeliest token, which is not ``expected`` with typical_p."""
    scores = torch.randn(vocab_size, generator=torch.Generator().manual_seed(0)) * 0.03
    likeliest = expected if "typical_p" not in given else expected - 1
    scores[likeliest] = math.log((vocab_size - 1) / 9)
    if likeliest != expected:  # its information is the entropy
        logprobs = scores.log_softmax(0)
        scores[expected] = scores.logsumexp(0) + (logprobs.exp() * logprobs).sum()
    return scores
