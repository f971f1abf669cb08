"""The text of an answer is what its ids add to the text of the prompt, with the real tokenizer of Phi-3."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3_serve.core.prompt import Conversation, Message, RawPrompt
from phi3_serve.parameters import GenerationParameters
from phi3_serve.resolved_parameters import resolve
from tests import real_tokenizer

PLAIN = resolve(GenerationParameters())
BYTES = range(3, 259)  # <0x00> to <0xFF>
SPACE = 29871  # a token of its own
CONTROL = [1, 32000, 32001, 32007, 32010]

# Whole, cut and impossible characters, control tokens, and ids beyond the tokenizer's vocabulary.
ids = st.one_of(
    st.integers(0, 32_063).map(lambda i: [i]),
    st.sampled_from(BYTES).map(lambda i: [i]),
    st.sampled_from("€🙂é漢").map(lambda character: [BYTES[byte] for byte in character.encode()]),
    st.sampled_from([SPACE, *CONTROL]).map(lambda i: [i]),
)
token_ids = st.lists(ids, max_size=8).map(lambda several: [i for few in several for i in few])


def text_of(prompt_ids: Sequence[int], chunks: Sequence[Sequence[int]]) -> str:
    stream = real_tokenizer.served().stream(
        real_tokenizer.served().before_answer(RawPrompt(""), prompt_ids), PLAIN, clean_up=False
    )
    return "".join([*map(stream.add, chunks), stream.finish()])


def difference(prompt_ids: list[int], answer_ids: list[int]) -> str:
    """What the library's decoding gains by the answer. A character that the answer completes belongs to it."""
    prompt, whole = (
        real_tokenizer.load().decode(i, skip_special_tokens=True) for i in (prompt_ids, prompt_ids + answer_ids)
    )
    assert isinstance(prompt, str)
    assert isinstance(whole, str)
    while not whole.startswith(prompt):
        prompt = prompt[:-1]
    return whole[len(prompt) :]


def test_the_bytes_are_tokens() -> None:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    assert real_tokenizer.load().convert_tokens_to_ids(names) == list(BYTES)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(token_ids, token_ids, st.integers(1, 4))
def test_the_text_is_the_difference_of_two_decodings(prompt: list[int], answer: list[int], size: int) -> None:
    chunks = [answer[at : at + size] for at in range(0, len(answer), size)]
    assert text_of(prompt, chunks) == text_of(prompt, [answer]) == difference(prompt, answer)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("def f(x):\n", [1678, 736, 29871, 29896], "    return 1"),
        ("Once upon a time, there", [471, 263], " was a"),
        ("Warsaw is", [278], " the"),
        ("<|user|>\nHi<|end|>\n<|assistant|>\n", [15043], " Hello"),
        ("Smile 🙂", [278], " the"),
    ],
)
def test_the_first_space_stays(prompt: str, answer: list[int], expected: str) -> None:
    assert text_of(real_tokenizer.served().encode(RawPrompt(prompt)), [answer]) == expected


def test_an_answer_to_a_conversation_begins_without_the_space() -> None:
    prompt = Conversation((Message("user", "Hi"),))
    before = real_tokenizer.served().before_answer(prompt, real_tokenizer.served().encode(prompt))
    stream = real_tokenizer.served().stream(before, PLAIN, clean_up=False)
    assert stream.add([15043]) + stream.finish() == "Hello"


def test_only_the_end_of_a_long_prompt_is_decoded() -> None:
    prompt = real_tokenizer.served().encode(RawPrompt("word " * 5000 + "🙂"))
    assert len(real_tokenizer.served().before_answer(RawPrompt(""), prompt)) <= 6
