"""Which part of a text each of its tokens is. Plain Python.

A run of byte tokens is decoded as a whole: as UTF-8 if it is UTF-8, otherwise each byte becomes U+FFFD, as the decoder
ByteFallback of ``tokenizers`` does. So a token's place is settled when the run that it may belong to is over.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

from phi3_serve.text.detokenize import REPLACEMENT, num_common


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
        before: Sequence[int] = (),
    ) -> None:
        """``piece_of``: the bytes of a token, none if its id is unknown. ``traceless_ids`` are not in the text.

        ``before``: the tokens before the text, which can end in a run that goes on; see ``Detokenizer``. The first
        space of all is dropped.
        """
        self._piece_of = piece_of
        self._byte_ids = byte_ids
        self._traceless_ids = traceless_ids
        self._drops_space = True
        self._num_chars = 0
        self._run: list[tuple[int, bytes, bool]] = []  # the open run of byte tokens: id, piece, whether it has a trace
        self._settled: deque[Place] = deque()
        self._num_before = 0  # tokens of the open run that are before the text
        self._known = ""  # what they were decoded to
        self.add(before)
        self._settled.clear()
        self._num_chars, self._num_before = 0, len(self._run)
        self._known = _decoded(self._traces())

    def add(self, token_ids: Iterable[int]) -> None:
        """Append ``token_ids`` to the text."""
        for token_id in token_ids:
            piece = self._piece_of(token_id)
            has_trace = bool(piece) and token_id not in self._traceless_ids
            if has_trace and token_id in self._byte_ids:
                self._run.append((token_id, piece, True))
            elif not has_trace and self._run:
                self._run.append((token_id, piece, False))
            else:
                self.finish()
                if has_trace and self._drops_space:
                    piece, self._drops_space = piece.removeprefix(b" "), False
                num_chars = len(piece.decode(errors="replace")) if has_trace else 0
                self._settle(token_id, piece, self._num_chars, self._num_chars + num_chars)

    def finish(self) -> None:
        """End the run of byte tokens, if there is one."""
        if not self._run:
            return
        traces = self._traces()
        ends = _ends_in_characters(traces)
        first, num_known, before = self._num_chars, num_common(_decoded(traces), self._known), 0
        of_text = list(zip(self._run, traces, ends, strict=True))[self._num_before :]
        self._run, self._num_before, self._known, self._drops_space = [], 0, "", False
        for (token_id, piece, has_trace), trace, end_of_run in of_text:
            end = max(0, end_of_run - num_known) if trace else before
            start = max(0, min(before, end - 1)) if trace else before
            self._settle(token_id, trace if has_trace else piece, first + start, first + end)
            before = end

    def _traces(self) -> list[bytes]:
        """What each token of the open run leaves in the text, if the run is over."""
        traces = [piece if has_trace else b"" for _, piece, has_trace in self._run]
        if traces and self._drops_space and _is_utf_8(b"".join(traces)):  # otherwise the space has become U+FFFD
            traces[0] = traces[0].removeprefix(b" ")
        return traces

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
    begins = [byte & 0xC0 != 0x80 for byte in run] if _is_utf_8(run) else [True] * len(run)
    ends, num_bytes, num_chars = [], 0, 0
    for piece in pieces:
        num_chars += sum(begins[num_bytes : num_bytes + len(piece)])
        num_bytes += len(piece)
        ends.append(num_chars)
    return ends


def _decoded(pieces: list[bytes]) -> str:
    run = b"".join(pieces)
    return run.decode() if _is_utf_8(run) else REPLACEMENT * len(run)


def _is_utf_8(run: bytes) -> bool:
    try:
        run.decode()
    except UnicodeDecodeError:
        return False
    return True
