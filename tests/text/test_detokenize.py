from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.text.detokenize import REPLACEMENT, CleanUp, Detokenizer, clean_up
from phi3_serve.text.tokenizer import Phi3Tokenizer

TOKENIZER = Phi3Tokenizer(AutoTokenizer.from_pretrained(EMBEDDED_TINY))
VOCABULARY = TOKENIZER._tokenizer.get_vocab()
BYTES = [VOCABULARY[f"<0x{byte:02X}>"] for byte in range(256)]
# Byte tokens drawn often, so that whole, cut and impossible UTF-8 occurs next to words, control tokens, and
# the ids of a padded vocabulary, which mean nothing: a model may give them all the same.
token_ids = st.sampled_from(BYTES) | st.integers(0, TOKENIZER._tokenizer.get_vocab_size() + 50)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.lists(st.lists(token_ids, max_size=4), max_size=20))
def test_pieces_joined_are_the_decoded_whole_whatever_the_model_says(chunks: list[list[int]]) -> None:
    detokenizer = TOKENIZER.detokenizer()
    pieces = [detokenizer.add(chunk) for chunk in chunks] + [detokenizer.finish()]
    assert "".join(pieces) == TOKENIZER.decode([i for chunk in chunks for i in chunk])


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT), max_size=30))
def test_real_text_never_shows_half_a_character(text: str) -> None:
    detokenizer = TOKENIZER.detokenizer()
    ids = TOKENIZER._tokenizer.encode(text, add_special_tokens=False).ids
    pieces = [detokenizer.add([i]) for i in ids] + [detokenizer.finish()]
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_words_leave_at_once_and_a_split_character_when_it_is_whole() -> None:
    detokenizer = TOKENIZER.detokenizer()
    word = VOCABULARY["▁the"]
    assert detokenizer.add([word]) == "the"
    assert [detokenizer.add([BYTES[b]]) for b in "€".encode()] == ["", "", ""]
    assert detokenizer.add([word]) == "€ the"
    assert detokenizer.finish() == ""


def test_the_work_per_token_does_not_grow_with_the_answer() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return TOKENIZER.decode(ids)

    detokenizer = Detokenizer(counting, visible_ids=frozenset(VOCABULARY.values()), byte_ids=frozenset(BYTES))
    for _ in range(500):
        detokenizer.add([VOCABULARY["▁the"]])
    assert max(decoded) == 2


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.lists(st.text(" .?!,'ntmsverab", max_size=6)))
def test_clean_up_in_pieces_is_clean_up_of_the_whole(pieces: list[str]) -> None:
    cleaner = CleanUp()
    assert "".join([cleaner.add(piece) for piece in pieces] + [cleaner.finish()]) == clean_up("".join(pieces))


def test_clean_up_does_what_transformers_4_55_did() -> None:
    assert clean_up("I do n't know , it 's fine . Is n't it ? We 've said ' so .") == (
        "I don't know, it's fine. Isn't it? We've said'so."
    )
