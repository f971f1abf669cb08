"""Which part of a text each of its tokens is. Plain Python.

A run of byte tokens is decoded as a whole: as UTF-8 if it is UTF-8, otherwise each byte becomes U+FFFD, as the decoder
ByteFallback of ``tokenizers`` does. So a token's place is settled when the run that it may belong to is over.
"""

from collections import deque
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple


class Place(NamedTuple):
    """One token, and the characters of the text that it is a part of, or is made of."""

    token_id: int
    piece: bytes  # what the text has of it; of a token without a trace its name
    start: int
    end: int  # as ``start`` if the token leaves no trace


class TokenPlaces:
    """The places of the tokens of one growing text."""

    def __init__(
        self,
        piece_of: Callable[[int], bytes],
        *,
        byte_ids: Set[int],
        traceless_ids: Set[int] = frozenset(),
        drops_first_space: bool,
    ) -> None:
        """``piece_of``: the bytes of a token, none if its id is unknown. ``traceless_ids`` are not in the text.

        ``drops_first_space``: whether the text begins without the space of its first token.
        """
        self._piece_of = piece_of
        self._byte_ids = byte_ids
        self._traceless_ids = traceless_ids
        self._drops_space = drops_first_space
        self._num_chars = 0
        self._run: list[tuple[int, bytes, bool]] = []  # the open run of byte tokens: id, piece, whether it has a trace
        self._settled: deque[Place] = deque()

    def add(self, token_ids: Iterable[int]) -> None:
        """Append ``token_ids`` to the text."""
        for token_id in token_ids:
            piece = self._piece_of(token_id)
            has_trace = bool(piece) and token_id not in self._traceless_ids
            if has_trace and self._drops_space:
                piece, self._drops_space = piece.removeprefix(b" "), False
            if has_trace and token_id in self._byte_ids:
                self._run.append((token_id, piece, True))
            elif not has_trace and self._run:
                self._run.append((token_id, piece, False))
            else:
                self.finish()
                num_chars = len(piece.decode(errors="replace")) if has_trace else 0
                self._settle(token_id, piece, self._num_chars, self._num_chars + num_chars)

    def finish(self) -> None:
        """End the run of byte tokens, if there is one."""
        if not self._run:
            return
        run, self._run = self._run, []
        ends = _ends_in_characters([piece if has_trace else b"" for _, piece, has_trace in run])
        first, before = self._num_chars, 0
        for (token_id, piece, has_trace), end in zip(run, ends, strict=True):
            start = end if not has_trace or not piece else min(before, end - 1)
            self._settle(token_id, piece, first + start, first + end)
            before = end

    def take(self, num_chars: int) -> list[Place]:
        """Remove and return the settled tokens of the first ``num_chars`` characters of the text."""
        taken = []
        while self._settled and (self._settled[0].start < num_chars or self._settled[0].end <= num_chars):
            taken.append(self._settled.popleft())
        return taken

    def take_all(self) -> list[Place]:
        """Remove and return all settled tokens."""
        taken = list(self._settled)
        self._settled.clear()
        return taken

    def _settle(self, token_id: int, piece: bytes, start: int, end: int) -> None:
        self._settled.append(Place(token_id, piece, start, end))
        self._num_chars = end


def _ends_in_characters(pieces: list[bytes]) -> list[int]:
    """For each piece of a run the number of characters that have begun when it ends."""
    run = b"".join(pieces)
    try:
        run.decode()
    except UnicodeDecodeError:
        begins = [1] * len(run)
    else:
        begins = [byte & 0xC0 != 0x80 for byte in run]
    ends, num_bytes, num_chars = [], 0, 0
    for piece in pieces:
        num_chars += sum(begins[num_bytes : num_bytes + len(piece)])
        num_bytes += len(piece)
        ends.append(num_chars)
    return ends
