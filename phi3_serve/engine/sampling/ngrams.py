"""Which tokens follow the earlier occurrences of some tokens. Nothing is stored, and nothing grows with the n-gram."""

from typing import Any

import numpy as np

COMPARED_ONE_BY_ONE = 64  # tokens; in most texts no occurrence is left after fewer


def followers(ids: Any, preceding: Any) -> list[int]:
    """The tokens of ``ids`` that follow an occurrence of ``preceding`` in ``ids``; both int64 [tokens]."""
    ends = np.arange(len(preceding), len(ids))
    for back in range(1, min(len(preceding), COMPARED_ONE_BY_ONE) + 1):
        ends = ends[ids[ends - back] == preceding[-back]]
        if not len(ends):
            return []
    tokens: list[int] = np.unique(ids[ends]).tolist()
    if len(preceding) <= COMPARED_ONE_BY_ONE:
        return tokens
    # A long repetition, such as one token a thousand times. str.find takes linear time for it.
    text, pattern = _as_text(ids), _as_text(preceding)
    return [token for token in tokens if text.find(pattern + chr(token)) >= 0]


def _as_text(ids: Any) -> str:
    return str(ids.astype("<u4").tobytes(), "utf-32-le", "surrogatepass")
