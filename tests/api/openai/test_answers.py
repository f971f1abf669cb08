"""The JSON of answers, from what a replica says of their tokens."""

from typing import Any

from phi3_serve.api.openai.chat_response import ChatResponseBuilder
from phi3_serve.api.openai.completion_response import CompletionResponseBuilder
from phi3_serve.api.openai.shown import Shown
from phi3_serve.core.completion import Completion, LikelyToken, PromptText, TextToken
from phi3_serve.core.event import Done
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.core.usage import Usage

LIKELIEST = (LikelyToken(9, b"\xe2", -0.25), LikelyToken(8, b"\x82", -0.5), LikelyToken(5, b" a", -2.0))
ANSWER = (
    TextToken(5, b" a", 0, True, -2.0, LIKELIEST),
    TextToken(6, b"<|end|>", 2, False, -0.5),
)
PROMPT = PromptText(
    "Hi you",
    (TextToken(1, b"Hi", 0), TextToken(2, b" you", 2, True, float("-inf"), (LikelyToken(9, b"\xe2", -0.25),), 7)),
)


def done(prompt: PromptText | None = None) -> Done:
    return Done((Completion(" a", GeneratedSequence((5, 6), "stop"), ANSWER),), Usage(2, 2), prompt=prompt)


def completion(of: PromptText | None = None, **shown: bool) -> Any:
    builder = CompletionResponseBuilder(id="i", model="m", shown=Shown(**shown))
    (choice,) = builder.response([done(of)], {})["choices"]
    return choice


def test_a_token_that_leaves_no_trace_is_left_out() -> None:
    assert completion(logprobs=True)["logprobs"] == {
        "tokens": [" a"],
        "token_logprobs": [-2.0],
        # two tokens have the same text, and the likelier one counts
        "top_logprobs": [{"\N{REPLACEMENT CHARACTER}": -0.25, " a": -2.0}],
        "text_offset": [0],
    }
    assert completion()["logprobs"] is None


def test_behind_an_echoed_prompt_all_tokens_are_listed() -> None:
    choice = completion(PROMPT, logprobs=True, prompt=True)
    assert choice["text"] == "Hi you a"
    assert choice["logprobs"]["tokens"] == ["Hi", " you", " a", "<|end|>"]
    assert choice["logprobs"]["token_logprobs"] == [None, -9999.0, -2.0, -0.5]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {"\N{REPLACEMENT CHARACTER}": -0.25, " you": -9999.0}]
    assert choice["logprobs"]["text_offset"] == [0, 2, 6, 8]


def test_the_prompt_alone() -> None:
    choice = completion(PROMPT, logprobs=True, prompt=True, answer=False)
    assert (choice["text"], choice["finish_reason"]) == ("Hi you", "length")
    assert choice["logprobs"]["tokens"] == ["Hi", " you"]


def test_tokens_by_their_ids() -> None:
    choice = completion(logprobs=True, tokens_as_ids=True)
    assert choice["logprobs"]["tokens"] == ["token_id:5", "token_id:6"]  # all, as an id needs no place in the text
    of_first, of_second = choice["logprobs"]["top_logprobs"]
    assert of_first == {"token_id:9": -0.25, "token_id:8": -0.5, "token_id:5": -2.0}
    assert of_second == {"token_id:6": -0.5}


def test_prompt_logprobs_are_those_of_vllm() -> None:
    shown = Shown(prompt_logprobs=True, token_ids=True)
    scored = [
        None,
        {
            "2": {"logprob": -9999.0, "rank": 7, "decoded_token": " you"},
            "9": {"logprob": -0.25, "rank": 1, "decoded_token": "\N{REPLACEMENT CHARACTER}"},
        },
    ]
    choice = completion(PROMPT, prompt_logprobs=True, token_ids=True)
    assert choice["prompt_logprobs"] == scored
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([1, 2], [5, 6])
    answer = ChatResponseBuilder(id="i", model="m", shown=shown).response([done(PROMPT)], {})
    assert (answer["prompt_logprobs"], answer["prompt_token_ids"]) == (scored, [1, 2])
    assert answer["choices"][0]["token_ids"] == [5, 6]
    assert not {"prompt_logprobs", "prompt_token_ids"} & set(answer["choices"][0])


def test_a_chat_has_the_bytes_of_its_tokens() -> None:
    builder = ChatResponseBuilder(id="i", model="m", shown=Shown(logprobs=True), role="user", echoed="Say")
    choice = builder.response([done()], {})["choices"][0]
    assert choice["message"] == {"role": "user", "content": "Say a", "refusal": None}
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == (" a", -2.0, [32, 97])
    assert token["top_logprobs"][0]["bytes"] == [0xE2]
