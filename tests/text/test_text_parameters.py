"""What vLLM's parameters of text do, with the real tokenizer of Phi-3."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters
from phi3_serve.resolved_parameters import resolve
from phi3_serve.text.tokenizer import Phi3Tokenizer

PATH = Path(__file__).parents[1] / "data" / "tokenizers" / "phi-3-mini.tokenizer.json"
END, USER, EOS = 32007, 32010, 32000
HELLO, THE = 15043, 278
ENDS = [EOS, END]


@cache
def library() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(PATH))


@cache
def tokenizer() -> Phi3Tokenizer:
    return Phi3Tokenizer(library())


def text_of(token_ids: Sequence[int], size: int = 1, **given: Any) -> str:
    parameters = resolve(GenerationParameters(**{"eos_token_id": ENDS, **given}))
    stream = tokenizer().stream((), parameters, clean_up=False)
    chunks = [token_ids[at : at + size] for at in range(0, len(token_ids), size)]
    return "".join([*map(stream.add, chunks), stream.finish()])


@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "Hello the"),
        ({"include_stop_str_in_output": True}, "Hello the"),
        ({"skip_special_tokens": False}, "Hello<|user|> the"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "Hello<|user|> the<|end|>"),
        ({"skip_special_tokens": False, "eos_token_id": [EOS], "stop_token_ids": [END]}, "Hello<|user|> the"),
        ({"skip_special_tokens": False, "spaces_between_special_tokens": False}, "Hello<|user|> the"),
    ],
)
def test_control_tokens(size: int, given: dict[str, Any], expected: str) -> None:
    assert text_of([HELLO, USER, THE, END], size, **given) == expected


@pytest.mark.parametrize("spaces", [True, False])
def test_there_are_no_spaces_between_control_tokens(spaces: bool) -> None:
    """As with vLLM, whose decoder would only take away spaces that are there."""
    shown = text_of([USER, USER, END], skip_special_tokens=False, spaces_between_special_tokens=spaces, ignore_eos=True)
    assert shown == library().decode([USER, USER, END], skip_special_tokens=False) == "<|user|><|user|><|end|>"


@pytest.mark.parametrize("keeps", [True, False])
def test_a_token_that_ends_the_answer(keeps: bool) -> None:
    """That of stop_token_ids is left out; that of eos_token_id is in the text, as in transformers, unless it is control."""
    ids = [HELLO, THE]
    assert text_of(ids, stop_token_ids=[THE], include_stop_str_in_output=keeps) == ("Hello the" if keeps else "Hello")
    assert text_of(ids, eos_token_id=THE, include_stop_str_in_output=keeps) == "Hello the"


def test_no_stop_string_ends_in_the_minimum() -> None:
    ids = [THE, HELLO, THE, HELLO]
    assert text_of(ids, stop="the") == ""
    assert text_of(ids, stop="the", min_new_tokens=1) == "the Hello "
    assert text_of(ids, stop="the", min_new_tokens=1, include_stop_str_in_output=True) == "the Hello the"
    assert text_of(ids, stop="the Hello", min_new_tokens=1) == ""
    assert text_of(ids, 4, stop="the Hello", min_new_tokens=2) == "the Hello "
    assert text_of(ids, stop="the", min_new_tokens=9) == "the Hello the Hello"


def test_bad_words_are_those_of_vllm() -> None:
    def ids(text: str) -> list[int]:
        return library().encode(text, add_special_tokens=False)  # type: ignore[no-any-return]

    words = ["the", " knight", "the", "don't", "<|end|>"]
    expected = []
    for word in ["the", "knight", "don't", "<|end|>"]:
        expected.append(ids(word))
        spaced = ids(f" {word}")
        if len(spaced) == len(ids(word)) and spaced[0] != ids(word)[0]:
            expected.append(spaced)
    assert tokenizer().bad_words_ids(words) == expected
    with pytest.raises(InvalidRequest, match="has no token"):
        tokenizer().bad_words_ids(["\t\n "])
