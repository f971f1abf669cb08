"""The places of tokens agree with the text that the tokenizer makes of them."""

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.prompt import RawPrompt, TokenPrompt
from phi3_serve.parameters import GenerationParameters
from phi3_serve.resolved_parameters import resolve
from phi3_serve.text.token_places import Place, TokenPlaces
from phi3_serve.text.tokenizer import Phi3Tokenizer

TOKENIZER = Phi3Tokenizer(AutoTokenizer.from_pretrained(EMBEDDED_TINY))
VOCABULARY = TOKENIZER._tokenizer.get_vocab()
BYTES = [VOCABULARY[f"<0x{byte:02X}>"] for byte in range(256)]
KEEPS_CONTROL = resolve(GenerationParameters(skip_special_tokens=False))
DROPS_CONTROL = resolve(GenerationParameters())
token_ids = st.sampled_from(BYTES) | st.integers(0, TOKENIZER._tokenizer.get_vocab_size() + 50)


def places(ids: list[int], before: list[int], *, keeps_control: bool) -> list[Place]:
    found = TOKENIZER.places(before, KEEPS_CONTROL if keeps_control else DROPS_CONTROL)
    for token_id in ids:
        found.add([token_id])
    found.finish()
    return found.take_all()


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")), deadline=None)
@given(st.lists(token_ids, max_size=20), st.booleans(), st.booleans(), st.lists(st.sampled_from(BYTES), max_size=4))
@example(ids=[BYTES[0x20], BYTES[0x80]], keeps_control=False, goes_on=False, bytes_before=[])
@example(ids=[BYTES[0x20], BYTES[0xC3], BYTES[0xA9]], keeps_control=False, goes_on=False, bytes_before=[])
@example(ids=[BYTES[0x80]], keeps_control=False, goes_on=False, bytes_before=[BYTES[0x20]])
@example(ids=[BYTES[0x80]], keeps_control=False, goes_on=True, bytes_before=[BYTES[byte] for byte in "😀".encode()])
@example(ids=[0, BYTES[0x80]], keeps_control=False, goes_on=False, bytes_before=[BYTES[0x00]])
@example(ids=[BYTES[0xAC]], keeps_control=False, goes_on=True, bytes_before=[BYTES[0xE2], BYTES[0x82]])
def test_places_follow_one_another_and_cover_the_text(
    ids: list[int], keeps_control: bool, goes_on: bool, bytes_before: list[int]
) -> None:
    before = [*([VOCABULARY["▁the"]] if goes_on else []), *bytes_before]
    detokenizer = TOKENIZER.detokenizer(before, with_control_tokens=keeps_control)
    text = detokenizer.add(ids) + detokenizer.finish()
    found = places(ids, before, keeps_control=keeps_control)
    assert [place.token_id for place in found] == ids
    end = 0
    for place in found:
        assert place.start <= end <= place.end
        assert place.start in (end, end - 1)  # a token may go on with the character of the one before it
        end = place.end
    assert end == len(text)
    shown = {place.start: place for place in found if place.end > place.start}
    for place in shown.values():
        piece = place.piece.decode(errors="replace")
        if "\N{REPLACEMENT CHARACTER}" not in piece + text[place.start : place.end]:  # of a byte, or of a wrong run
            assert text[place.start : place.end] == piece


def test_a_character_of_several_tokens_is_the_place_of_each() -> None:
    ids = [VOCABULARY["▁the"], *(BYTES[byte] for byte in "€é".encode()), VOCABULARY["▁the"]]
    found = places(ids, [], keeps_control=False)
    assert [(place.start, place.end) for place in found] == [(0, 3), (3, 4), (3, 4), (3, 4), (4, 5), (4, 5), (5, 9)]
    assert b"".join(place.piece for place in found).decode() == "the€é the"


def test_tokens_are_taken_when_their_text_has_left() -> None:
    found = TOKENIZER.places([VOCABULARY["▁the"]], DROPS_CONTROL)
    found.add([VOCABULARY["▁the"], BYTES[0xE2]])
    assert [place.piece for place in found.take(4)] == [b" the"]
    found.add([BYTES[0x82], BYTES[0xAC]])
    assert found.take(5) == []  # another byte may still make the run invalid
    found.finish()
    assert found.take(4) == []
    assert [place.piece for place in found.take(5)] == [b"\xe2", b"\x82", b"\xac"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello there",
        "  two",
        "é😀x",
        "def f(x):\n    return 1",
        "<|user|>\n Hi<|end|>\n<|assistant|>",
        " ",
        "a\n\n\nb",
        "😀",
        "<|user|>😀",
    ],
)
def test_the_tokens_of_a_text_are_its_parts(text: str) -> None:
    prompt = RawPrompt(text)
    shown, found = TOKENIZER.prompt_places(prompt, TOKENIZER.encode(prompt))
    assert shown == text
    assert b"".join(place.piece for place in found).decode() == text
    for place in found:
        piece = place.piece.decode(errors="replace")
        assert text[place.start : place.end] == piece or "\N{REPLACEMENT CHARACTER}" in piece


def test_a_prompt_that_was_cut_or_came_as_token_ids_is_decoded() -> None:
    prompt = RawPrompt("<|user|> the knight<|end|>")
    ids = TOKENIZER.encode(prompt)
    for shown_of, kept in ((prompt, ids[1:]), (TokenPrompt(tuple(ids)), ids)):
        shown, found = TOKENIZER.prompt_places(shown_of, kept)
        assert shown == TOKENIZER._decode_all(kept)
        assert [place.token_id for place in found] == list(kept)
        assert "".join(place.piece.decode() for place in found) == shown


def test_an_unknown_id_has_no_piece() -> None:
    places = TokenPlaces(lambda token_id: b"", byte_ids=frozenset())
    places.add([5])
    assert places.take_all() == [Place(5, b"", 0, 0)]
