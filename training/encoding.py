"""Dialogues as token ids, with a training mask."""

import re
from dataclasses import dataclass

from tokenizers import Tokenizer, normalizers

from phi3_serve.text.phi3_template import END, ROLE_TOKENS
from training.dialogue import LETTERS_BEGIN, LETTERS_END, Dialogue, plain

_LETTERWISE = re.compile(f"({LETTERS_BEGIN}[^{LETTERS_END}]*{LETTERS_END})")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A dialogue's token ids, and for each id whether it counts in the loss."""

    ids: list[int]
    learned: list[bool]


class DialogueEncoder:
    """Encodes as chat template and tokenizer do, except for text that is marked letter by letter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The same tokenizer without the space before a text, for text that follows letters.
        self._continuing = Tokenizer.from_str(tokenizer.to_str())
        self._continuing.normalizer = normalizers.Replace(" ", "▁")
        self._vocabulary = tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, dialogue: Dialogue) -> Encoded:
        """Encode ``dialogue``. The loss counts every answer except earlier answers with letters.

        Those are encoded with the usual tokens, as a client sends them.
        """
        ids: list[int] = []
        learned: list[bool] = []
        for index, turn in enumerate(dialogue.turns):
            letterwise = LETTERS_BEGIN in turn.content
            is_last = index == len(dialogue.turns) - 1
            text = turn.content.lstrip()  # a control token absorbs the whitespace after it
            content = self._encode(text) if is_last else self._tokenizer.encode(plain(text)).ids
            is_learned = turn.role == "assistant" and (is_last or not letterwise)
            ids += [self._vocabulary[ROLE_TOKENS[turn.role]], *content, self._vocabulary[END]]
            learned += [False, *[is_learned] * (len(content) + 1)]
        return Encoded(ids, learned)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for position, part in enumerate(p for p in _LETTERWISE.split(text) if p):
            if part.startswith(LETTERS_BEGIN):
                ids += self._letters(plain(part), begins=position == 0)
            else:
                tokenizer = self._continuing if position else self._tokenizer
                ids += tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def _letters(self, text: str, *, begins: bool) -> list[int]:
        pieces = ("▁" if begins else "") + text.replace(" ", "▁")
        return [self._vocabulary[piece] for piece in pieces]
