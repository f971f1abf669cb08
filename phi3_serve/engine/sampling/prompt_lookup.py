"""Prompt lookup: guess the next tokens from what followed the same words before.

Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding. A guess costs nothing but its place in the
forward pass, which verifies it; the answer does not depend on it.
"""

from array import array

import numpy as np

LONGEST_NGRAM = 3  # tokens; the more of them agree, the likelier the rest does


def drafted(history: "array[int]", count: int) -> tuple[int, ...]:
    """Up to ``count`` tokens that followed the last ones of ``history`` where these occurred before."""
    ids = np.frombuffer(history, dtype=np.int64)
    for size in range(min(LONGEST_NGRAM, len(ids) - 1), 0, -1):
        matches = np.ones(len(ids) - size, dtype=bool)
        for offset in range(size):
            matches &= ids[offset : len(ids) - size + offset] == ids[len(ids) - size + offset]
        found = matches.nonzero()[0]
        if len(found):
            ample = found[found + size + count <= len(ids)]  # the last one that enough follows, or else the first
            start = int(ample[-1] if len(ample) else found[0]) + size
            return tuple(ids[start : start + count].tolist())
    return ()
