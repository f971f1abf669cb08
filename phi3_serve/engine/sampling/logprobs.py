"""Log-probabilities of tokens under the model's own scores, from logits that nothing has changed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phi3_serve.core.generated_sequence import TokenLogprobs

ROWS_AT_ONCE = 64
"""Rows whose log-probabilities are computed together. With 32,064 tokens in the vocabulary, they take 8 MB."""


def token_logprobs(
    logits: Tensor, tokens: Sequence[int], count: int, *, with_ranks: bool = False
) -> list[TokenLogprobs]:
    """For each row the log-probability of its token, and the ``count`` most likely tokens with theirs.

    Args:
        logits: [rows, vocabulary], of any float type; computed in float32.
        tokens: one for each row.
        count: 0 or more.
        with_ranks: also the rank of each token, which is the number of tokens that are at least as likely.
    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        some = tokens[start : start + ROWS_AT_ONCE]
        found += _of_rows(logits[start : start + len(some)], some, count, with_ranks=with_ranks)
    return found


def _of_rows(logits: Tensor, tokens: Sequence[int], count: int, *, with_ranks: bool) -> list[TokenLogprobs]:
    logprobs = logits.float().log_softmax(-1)
    of_tokens = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])
    values, ids = (found.tolist() for found in logprobs.topk(min(count, logprobs.shape[1])))
    ranks = (logprobs >= of_tokens).sum(-1).tolist() if with_ranks else [None] * len(tokens)
    return [
        TokenLogprobs(of_token, tuple(zip(i, v, strict=True)), rank)
        for of_token, i, v, rank in zip(of_tokens.flatten().tolist(), ids, values, ranks, strict=True)
    ]
