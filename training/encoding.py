"""Dialogues as token ids, with the places that are learned."""

import re
from dataclasses import dataclass

from tokenizers import Tokenizer, normalizers

from phi3_serve.text.template import END, ROLE_TOKENS
from training.dialogue import LETTERS_BEGIN, LETTERS_END, Dialogue, plain

_LETTERWISE = re.compile(f"({LETTERS_BEGIN}[^{LETTERS_END}]*{LETTERS_END})")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A dialogue's token ids, and for each whether the model is to learn it."""

    ids: list[int]
    learned: list[bool]


class DialogueEncoder:
    """Encodes as the chat template and the tokenizer do together, but for text marked as letter by letter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The same without the space that begins a text, for text that goes on after letters.
        self._continuing = Tokenizer.from_str(tokenizer.to_str())
        self._continuing.normalizer = normalizers.Replace(" ", "▁")
        self._vocabulary = tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, dialogue: Dialogue) -> Encoded:
        """Every answer is learned, but for an earlier one with letters: it is read as a client would send it."""
        ids: list[int] = []
        learned: list[bool] = []
        for index, turn in enumerate(dialogue.turns):
            letterwise = LETTERS_BEGIN in turn.content
            is_last = index == len(dialogue.turns) - 1
            text = turn.content.lstrip()  # a control token swallows the whitespace after it
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
