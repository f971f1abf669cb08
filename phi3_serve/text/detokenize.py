"""Token ids to text in pieces.

The joined pieces are what the ids add to the text before them: ``decode(before + ids)`` without ``decode(before)``.
Decoded alone, an answer would lose its first space, because the decoders of Llama and Phi-3 drop the first space.
"""

from collections.abc import Callable, Sequence, Set

from phi3_serve.text.stop import StopText

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# What transformers 4.55 did for clean_up_tokenization_spaces (PreTrainedTokenizerBase.clean_up_tokenization);
# 5.x has it no longer.
_CLEAN_UPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up(text: str) -> str:
    """``text`` without the spaces that word-level tokenizers leave before punctuation and contractions."""
    for found, replacement in _CLEAN_UPS:
        text = text.replace(found, replacement)
    return text


class Detokenizer:
    """The text of one growing sequence; text that was returned never changes later.

    Two things are held back until they are settled. Bytes of an unfinished UTF-8 character, which decode to
    U+FFFD. And a run of byte tokens: the ByteFallback decoder turns the whole run into U+FFFD if a later byte
    of it is wrong. Only the ids since the last settled points are decoded again, so a long answer costs the
    same per token as a short one.

    ``decode`` turns only ``visible_ids`` into text; control tokens, and ids that a padded vocabulary has beyond
    the tokenizer's, leave no trace and do not end a run. ``byte_ids`` are the tokens ``<0x00>`` to ``<0xFF>``.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        visible_ids: frozenset[int],
        byte_ids: frozenset[int],
        before: Sequence[int] = (),
    ) -> None:
        """``before``: token ids before the sequence, which are not part of the text."""
        self._decode = decode
        self._visible_ids = visible_ids
        self._byte_ids = byte_ids
        self._ids = list(before)
        # ids[context:settled] are already returned and decoded again only as context: decoders drop the first space.
        self._context = 0
        self._settled = self._start_of_byte_run()
        self._num_chars = len(decode(self._ids[: self._settled]))
        # A run of byte tokens can go on behind ``before``. Then its text is decoded again, and not returned again.
        self._known = decode(self._ids)[self._num_chars :]

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is final after ``token_ids``; it may be empty."""
        self._ids += token_ids
        if self._start_of_byte_run() < len(self._ids):
            return ""
        before = self._decode(self._ids[self._context : self._settled])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or after.endswith(REPLACEMENT):
            return ""
        self._context, self._settled = self._settled, len(self._ids)
        return self._give(after[len(before) :])

    def finish(self) -> str:
        """The rest of the text."""
        return self._give(self._decode(self._ids)[self._num_chars :])

    def _start_of_byte_run(self) -> int:
        """The number of ids before the run of byte tokens at the end; all ids if there is no such run."""
        start = len(self._ids)
        for number in range(len(self._ids) - 1, -1, -1):
            if self._ids[number] in self._byte_ids:
                start = number
            elif self._ids[number] in self._visible_ids:
                break
        return start

    def _give(self, text: str) -> str:
        self._num_chars += len(text)
        num_known = num_common(text, self._known)
        if text:
            self._known = ""
        return text[num_known:]


def num_common(one: str, other: str) -> int:
    """How many leading characters are the same in both."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


class CleanUp:
    """``clean_up`` for a text in pieces.

    Every rule only matches runs of the characters below, before and after earlier rules have acted, so what
    comes up to and including any other character is settled.
    """

    _OF_A_RULE = frozenset("".join(found for found, _ in _CLEAN_UPS))

    def __init__(self) -> None:
        self._held = ""

    def add(self, text: str) -> str:
        """The cleaned text that is final after ``text``."""
        self._held += text
        end = next((i + 1 for i in range(len(self._held) - 1, -1, -1) if self._held[i] not in self._OF_A_RULE), 0)
        settled, self._held = self._held[:end], self._held[end:]
        return clean_up(settled)

    def finish(self) -> str:
        """The rest of the text."""
        settled, self._held = self._held, ""
        return clean_up(settled)


class TextStream:
    """The text of one answer that comes as token ids: detokenized, cleaned up if requested, cut at a stop string."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: StopText,
        *,
        clean_up: bool,
        hidden_ids: Set[int] = frozenset(),
        num_before_stop: int = 0,
    ) -> None:
        """``hidden_ids`` are left out of the text. No stop string ends in the first ``num_before_stop`` tokens."""
        self._detokenizer = detokenizer
        self._cleaner = CleanUp() if clean_up else None
        self._stop = stop
        self._hidden_ids = hidden_ids
        self._num_before_stop = num_before_stop

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is final after ``token_ids``; it may be empty."""
        early, late = token_ids[: self._num_before_stop], token_ids[self._num_before_stop :]
        self._num_before_stop -= len(early)
        text = self._stop.add(self._text_of(early), may_stop=False) if early else ""
        return text + self._stop.add(self._text_of(late))

    def finish(self) -> str:
        """The rest of the text."""
        text = self._detokenizer.finish()
        text = text if self._cleaner is None else self._cleaner.add(text) + self._cleaner.finish()
        return self._stop.add(text, may_stop=not self._num_before_stop) + self._stop.finish()

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended the text."""
        return self._stop.found

    def _text_of(self, token_ids: Sequence[int]) -> str:
        text = self._detokenizer.add([i for i in token_ids if i not in self._hidden_ids])
        return text if self._cleaner is None else self._cleaner.add(text)
