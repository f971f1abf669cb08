"""Prompt lookup: speculate that a repeated n-gram goes on as it did before.

Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding. The next forward pass verifies the draft, so the
answer does not depend on it.
"""

from array import array

import numpy as np

MAX_NGRAM = 3  # tokens; after a longer match the draft is right more often


def propose_draft(history: "array[int]", count: int) -> tuple[int, ...]:
    """Up to ``count`` tokens that followed an earlier occurrence of the last n-gram of ``history``."""
    ids = np.frombuffer(history, dtype=np.int64)
    for size in range(min(MAX_NGRAM, len(ids) - 1), 0, -1):
        matches = np.ones(len(ids) - size, dtype=bool)
        for offset in range(size):
            matches &= ids[offset : len(ids) - size + offset] == ids[len(ids) - size + offset]
        found = matches.nonzero()[0]
        if len(found):
            complete = found[found + size + count <= len(ids)]  # ``count`` tokens follow these occurrences
            start = int(complete[-1] if len(complete) else found[0]) + size
            return tuple(ids[start : start + count].tolist())
    return ()
