"""Log-probabilities agree with the text of an answer."""

from typing import Any

import pytest

from phi3_serve.api.openai.answers import ChatResponseBuilder, CompletionResponseBuilder
from phi3_serve.core import Completion, Done, GeneratedSequence, TokenLogprobs, Usage

PIECES = {5: b" the", 6: b"<|im_start|>", 7: b" The", 8: b" of"}


def done(text: str, *, drops_first_space: bool) -> Done:
    logprobs = tuple(TokenLogprobs(-0.5, ((i, -0.5),)) for i in PIECES)
    sequence = GeneratedSequence(tuple(PIECES), "length", logprobs=logprobs)
    completion = Completion(text, sequence, PIECES, control_ids=frozenset({6}), drops_first_space=drops_first_space)
    return Done((completion,), Usage(1, 4))


def columns(text: str, *, drops_first_space: bool) -> Any:
    builder = CompletionResponseBuilder(id="i", model="m")
    return builder.response([done(text, drops_first_space=drops_first_space)], {})["choices"][0]


@pytest.mark.parametrize(
    ("text", "drops_first_space", "tokens", "offsets"),
    [
        (" the The of", False, [" the", " The", " of"], [0, 4, 8]),
        ("the The of", True, ["the", " The", " of"], [0, 3, 7]),
    ],
)
def test_tokens_and_offsets_are_those_of_the_text(
    text: str, drops_first_space: bool, tokens: list[str], offsets: list[int]
) -> None:
    """A control token within the answer is left out, whatever its name is."""
    choice = columns(text, drops_first_space=drops_first_space)
    assert choice["text"] == text == "".join(tokens)
    assert choice["logprobs"]["tokens"] == tokens
    assert choice["logprobs"]["text_offset"] == offsets


def test_tokens_behind_a_stop_string_are_left_out() -> None:
    choice = columns(" the The", drops_first_space=False)
    assert choice["logprobs"]["tokens"] == [" the", " The"]


def test_a_conversation_has_the_bytes_of_its_text() -> None:
    builder = ChatResponseBuilder(id="i", model="m")
    choice = builder.response([done("the The of", drops_first_space=True)], {})["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == choice["message"]["content"]
