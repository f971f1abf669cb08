"""The biases of token sequences, for ``sequence_bias`` and ``bad_words_ids``. A step costs only those that match."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class _Biases:
    """What is added to the scores of some tokens, in float32."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._values: list[float] = []

    def add(self, token: int, value: float) -> None:
        self._tokens.append(token)
        self._values.append(value)

    def arrays(self) -> tuple[Any, Any]:
        """The token ids, each once, int64, and their biases, float32."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, as in torch
            return np.array(self._tokens, dtype=np.int64), np.array(self._values).astype(np.float32)


class SequenceBiases:
    """Biases of the last token of a sequence, for histories that end with the tokens before it.

    They are grouped by the tokens before, and the groups are found by their last token.
    """

    def __init__(self, pairs: Iterable[tuple[Sequence[int], float]]) -> None:
        """The last of several biases for the same sequence counts, as in the dictionary that transformers makes."""
        by_preceding: dict[bytes, _Biases] = {}
        for ids, value in _in_order_of_transformers({tuple(ids): value for ids, value in pairs}):
            by_preceding.setdefault(array("q", ids[:-1]).tobytes(), _Biases()).add(ids[-1], value)
        self._always = by_preceding.pop(b"").arrays() if b"" in by_preceding else None
        self._by_last_token: dict[int, list[tuple[bytes, tuple[Any, Any]]]] = {}
        for preceding, biases in by_preceding.items():
            last = array("q", preceding[-_TOKEN_BYTES:])[0]
            self._by_last_token.setdefault(last, []).append((preceding, biases.arrays()))
        self._longest = max(map(len, by_preceding), default=0) // _TOKEN_BYTES  # tokens

    def __bool__(self) -> bool:
        return self._always is not None or bool(self._by_last_token)

    @property
    def needs_history(self) -> bool:
        """Whether a sequence has several tokens."""
        return bool(self._by_last_token)

    def after(self, history: "array[int]", start: int = 0) -> tuple[Any, Any] | None:
        """Token ids, each once, and the sums of their biases after ``history``; None if there are none.

        Only the tokens of ``history`` from ``start`` on count.
        """
        found = [] if self._always is None else [self._always]
        candidates = self._by_last_token.get(history[-1]) if len(history) > start else None
        if candidates:
            end = history[max(start, len(history) - self._longest) :].tobytes()
            found += [biases for preceding, biases in candidates if end.endswith(preceding)]
        if len(found) <= 1:
            return found[0] if found else None
        tokens, place = np.unique(np.concatenate([ids for ids, _ in found]), return_inverse=True)
        sums = np.zeros(len(tokens), dtype=np.float32)
        np.add.at(sums, place, np.concatenate([values for _, values in found]))  # one after another, in their order
        return tokens, sums


_TOKEN_BYTES = array("q").itemsize


def _in_order_of_transformers(
    by_sequence: dict[tuple[int, ...], float],
) -> list[tuple[tuple[int, ...], float]]:
    """Single tokens first, then the sequences by length, in the order in which the lengths first occur.

    The order of a sum decides the last bit in float32.
    """
    rank = {1: 0}
    for ids in by_sequence:
        rank.setdefault(len(ids), len(rank))
    return sorted(by_sequence.items(), key=lambda item: rank[len(item[0])])
