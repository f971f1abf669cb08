"""What rules tokens out before one is drawn, in Triton, without sorting the vocabulary.

A program holds all scores of one row. Thresholds (the k-th largest score, the edge of the nucleus) are found by
bisection over the bits of the scores, whose order as integers is that of the scores.
"""

import triton
import triton.language as tl

FLOATS = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
PARAMETERS = frozenset({*FLOATS, "top_k"})
"""The parameters that ``warped`` honours."""


@triton.jit
def warped(scores, column, floats, ints, VOCAB: tl.constexpr):  # type: ignore[no-untyped-def]
    """``scores`` of one row as ``warpers.warp`` gives them: divided by the temperature, and -inf where ruled out.

    Of tokens with equal scores at the edge of the nucleus, those with the lowest ids are ruled out.

    ``floats``: see ``FLOATS``. A top_p or typical_p of 1 is off, and so is any other of 0.

    ``ints``: top_k (0: off) and the number of tokens that no warper rules out.
    """
    top_k, keep = tl.load(ints), tl.load(ints + 1)
    scores = scores / tl.load(floats)
    scores = _top_k(scores, top_k, keep, VOCAB)
    scores = _top_p(scores, column, tl.load(floats + 1), keep)
    scores = _min_p(scores, tl.load(floats + 2), keep)
    scores = _typical_p(scores, tl.load(floats + 3), keep)
    scores = _epsilon_cutoff(scores, tl.load(floats + 4), keep)
    return _eta_cutoff(scores, tl.load(floats + 5), keep)


@triton.jit
def _ordered(scores):  # type: ignore[no-untyped-def]
    """int32 numbers in the order of ``scores``; -0 is 0."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _midpoint(low, high):  # type: ignore[no-untyped-def]
    """Between two int32 numbers, rounded up, without overflow."""
    return (low.to(tl.int64) + (high.to(tl.int64) - low.to(tl.int64) + 1) // 2).to(tl.int32)


@triton.jit
def _kth_largest(keys, count):  # type: ignore[no-untyped-def]
    """The largest key that at least ``count`` keys reach."""
    low, high = tl.min(keys, 0), tl.max(keys, 0)
    while low < high:
        middle = _midpoint(low, high)
        is_reached = tl.sum((keys >= middle).to(tl.int32), 0) >= count
        low = tl.where(is_reached, middle, low)
        high = tl.where(is_reached, high, middle - 1)
    return low


@triton.jit
def _logprobs_and_entropy(scores):  # type: ignore[no-untyped-def]
    """Logarithms of the softmax of ``scores``, and its entropy in nats."""
    shifted = scores - tl.max(scores, 0)
    weights = tl.exp(shifted)
    total = tl.sum(weights, 0)
    logprobs = shifted - tl.log(total)
    entropy = -tl.sum(weights / total * tl.where(weights > 0.0, logprobs, 0.0), 0)
    return logprobs, entropy


@triton.jit
def _cut_below(scores, probability, keep):  # type: ignore[no-untyped-def]
    """Rule out the tokens with less than ``probability``, but for ``keep`` of them."""
    keys = _ordered(scores)
    weights = tl.exp(scores - tl.max(scores, 0))
    is_kept = (weights / tl.sum(weights, 0) >= probability) | (keys >= _kth_largest(keys, keep))
    return tl.where(is_kept, scores, float("-inf"))


@triton.jit
def _top_k(scores, top_k, keep, VOCAB: tl.constexpr):  # type: ignore[no-untyped-def]
    if top_k > 0:
        keys = _ordered(scores)
        threshold = _kth_largest(keys, tl.minimum(tl.maximum(top_k, keep), VOCAB))
        scores = tl.where(keys >= threshold, scores, float("-inf"))
    return scores


@triton.jit
def _top_p(scores, column, top_p, keep):  # type: ignore[no-untyped-def]
    """Rule out the least likely tokens whose probabilities sum to at most 1 - top_p, but for ``keep`` of them."""
    if top_p < 1.0:
        keys = _ordered(scores)
        weights = tl.exp(scores - tl.max(scores, 0))
        limit = (1.0 - top_p) * tl.sum(weights, 0)
        low, high = tl.min(keys, 0), tl.max(keys, 0)
        while low < high:  # the lowest key whose tokens are not all ruled out
            middle = _midpoint(low, high)
            is_ruled_out = tl.sum(tl.where(keys < middle, weights, 0.0), 0) <= limit
            low = tl.where(is_ruled_out, middle, low)
            high = tl.where(is_ruled_out, high, middle - 1)
        below = tl.sum(tl.where(keys < low, weights, 0.0), 0)
        is_edge = keys == low
        weight = tl.max(tl.where(is_edge, weights, 0.0), 0)
        num_edge = tl.sum(is_edge.to(tl.int32), 0)
        num_above = tl.sum((keys > low).to(tl.int32), 0)
        fitting = tl.where(weight > 0.0, (limit - below) / weight, 0.0)
        num_removed = tl.minimum(tl.maximum(fitting, 0.0), num_edge.to(tl.float32)).to(tl.int32)
        num_removed = tl.minimum(num_removed, num_edge + num_above - tl.maximum(keep, 1))
        rank = tl.cumsum(is_edge.to(tl.int32), 0)
        if num_removed < 0:  # more tokens than those above the edge have to stay
            threshold = _kth_largest(keys, keep)
            scores = tl.where(keys >= threshold, scores, float("-inf"))
        else:
            is_removed = (keys < low) | (is_edge & (rank <= num_removed))
            scores = tl.where(is_removed, float("-inf"), scores)
    return scores


@triton.jit
def _min_p(scores, min_p, keep):  # type: ignore[no-untyped-def]
    if min_p > 0.0:
        keys = _ordered(scores)
        weights = tl.exp(scores - tl.max(scores, 0))
        is_kept = (weights >= min_p) | (keys >= _kth_largest(keys, keep))
        scores = tl.where(is_kept, scores, float("-inf"))
    return scores


@triton.jit
def _typical_p(scores, typical_p, keep):  # type: ignore[no-untyped-def]
    """Keep the tokens whose information is closest to the entropy, until they have the probability ``typical_p``."""
    if typical_p < 1.0:
        logprobs, entropy = _logprobs_and_entropy(scores)
        keys = _ordered(tl.abs(-logprobs - entropy))
        probs = tl.exp(logprobs)
        low, high = tl.min(keys, 0), tl.max(keys, 0)
        while low < high:  # the lowest key up to which the tokens have the probability
            middle = _midpoint(low, high) - 1
            is_reached = tl.sum(tl.where(keys <= middle, probs, 0.0), 0) >= typical_p
            high = tl.where(is_reached, middle, high)
            low = tl.where(is_reached, low, middle + 1)
        threshold = tl.maximum(low, -_kth_largest(-keys, keep))
        scores = tl.where(keys <= threshold, scores, float("-inf"))
    return scores


@triton.jit
def _epsilon_cutoff(scores, epsilon, keep):  # type: ignore[no-untyped-def]
    if epsilon > 0.0:
        scores = _cut_below(scores, epsilon, keep)
    return scores


@triton.jit
def _eta_cutoff(scores, eta, keep):  # type: ignore[no-untyped-def]
    """As the cutoff epsilon, but with a lower limit where the entropy is high."""
    if eta > 0.0:
        _, entropy = _logprobs_and_entropy(scores)
        scores = _cut_below(scores, tl.minimum(eta, tl.sqrt(eta) * tl.exp(-entropy)), keep)
    return scores
