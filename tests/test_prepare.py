import math
import time

import pytest

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters as P
from phi3_serve.prepare import check_vocabulary, kept_by_hole, lengths, prepare, truncated, warnings
from phi3_serve.resolved_parameters import resolve


@pytest.mark.parametrize(
    ("given", "prompt", "prefix", "expected"),
    [
        (P(max_length=50), 10, 0, (0, 50)),
        (P(max_length=50, max_new_tokens=5), 10, 0, (0, 15)),
        (P(max_length=50), 10, 4, (0, 54)),
        (P(), 10, 0, (0, 30)),
        (P(max_length=9999), 10, 0, (0, 100)),
        (P(max_new_tokens=9999), 10, 0, (0, 100)),
        (P(max_length=50, min_length=20), 10, 4, (24, 54)),
        (P(max_length=50, min_length=20, min_new_tokens=3), 10, 0, (13, 50)),
        (P(max_length=20, min_length=30), 10, 0, (30, 20)),
        (P(max_new_tokens=2, min_new_tokens=3), 10, 0, (13, 12)),
        (P(max_new_tokens=9999, min_new_tokens=9999), 10, 0, (10009, 100)),
    ],
)
def test_lengths(given: P, prompt: int, prefix: int, expected: tuple[int, int]) -> None:
    found = lengths(resolve(given), prompt=prompt, prefix=prefix, context=100)
    assert (found.min_length, found.max_length) == expected


@pytest.mark.parametrize(
    ("given", "prompt", "text"),
    [
        (P(), 100, "The prompt has 100 tokens, but this model's context holds 100, answer included."),
        (
            P(max_length=10),
            10,
            "Input length of input_ids is 10, but `max_length` is set to 10. `max_length` counts prompt and answer "
            "together: increase it, or set `max_new_tokens`.",
        ),
    ],
)
def test_lengths_that_leave_no_room_are_refused(given: P, prompt: int, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lengths(resolve(given), prompt=prompt, prefix=0, context=100)
    assert caught.value.message == text


NO_END = "`eos_token_id` is empty: no token ends the answer."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (P(eos_token_id=5), []),
        (P(eos_token_id=5, max_length=20, min_length=20), []),
        (P(), [NO_END]),
        (P(eos_token_id=[]), [NO_END]),
        (
            P(eos_token_id=5, max_length=20, min_length=30),
            [
                "`min_length` asks for at least 30 tokens of prompt and answer, but the most possible is 20; the answer "
                "ends there."
            ],
        ),
        (
            P(eos_token_id=[], max_new_tokens=9000, min_new_tokens=9000),
            [
                "`min_new_tokens` asks for at least 9010 tokens of prompt and answer, but the most possible is 100; the "
                "answer ends there.",
                NO_END,
            ],
        ),
    ],
)
def test_what_cannot_have_its_effect_is_a_warning(given: P, expected: list[str]) -> None:
    request = prepare("r", [5] * 10, resolve(given), context_length=100, timeout_s=1)
    assert list(warnings(request)) == expected


@pytest.mark.parametrize(
    ("prompt", "given", "param", "token"),
    [
        ([3, 704, 5], P(), "prompt", 704),
        ([3, -1, 5], P(), "prompt", -1),
        ([3], P(bad_words_ids=[[1], [2, 704]]), "bad_words_ids", 704),
        ([3], P(sequence_bias=[([-7, 1], 2.0)]), "sequence_bias", -7),
        ([3], P(eos_token_id=[-1, 5]), "eos_token_id", -1),
        ([3], P(begin_suppress_tokens=[704]), "begin_suppress_tokens", 704),
        ([3], P(guidance_scale=2.0, negative_prompt_ids=[-1]), "negative_prompt_ids", -1),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused(prompt: list[int], given: P, param: str, token: int) -> None:
    request = prepare("r", prompt, resolve(given), context_length=100, timeout_s=1)
    with pytest.raises(InvalidRequest) as caught:
        check_vocabulary(request, 704)
    assert caught.value.param == param
    assert caught.value.message == f"`{param}` holds token id {token}; this model's ids go from 0 to 703."


def test_hole_keeps_the_end_of_the_prompt() -> None:
    assert kept_by_hole(resolve(P(max_new_tokens=30)), prompt=90, context=100) == 70
    assert kept_by_hole(resolve(P(max_new_tokens=10)), prompt=90, context=100) == 90
    assert kept_by_hole(resolve(P(max_length=120)), prompt=110, context=100) == 90
    with pytest.raises(InvalidRequest, match="We cannot infer how many new tokens are expected"):
        kept_by_hole(resolve(P(max_length=50)), prompt=90, context=100)
    with pytest.raises(InvalidRequest, match="exceeds the models max length"):
        kept_by_hole(resolve(P(max_new_tokens=100)), prompt=90, context=100)


def test_deadlines_are_counted_from_now() -> None:
    before = time.monotonic()
    request = prepare("r", [5, 6], resolve(P()), context_length=100, timeout_s=30, queue_timeout_s=4)
    after = time.monotonic()
    assert before + 30 <= request.deadline <= after + 30
    assert before + 4 <= request.begin_by <= after + 4
    assert prepare("r", [5], resolve(P()), context_length=100, timeout_s=30).begin_by == math.inf


def test_the_start_of_a_prompt_that_is_too_long_is_dropped_on_request() -> None:
    parameters = resolve(P(max_new_tokens=30))
    prompt = list(range(90))
    request = prepare("r", prompt, parameters, context_length=100, timeout_s=1, truncates_prompt=True)
    assert (request.prompt_ids, request.max_length) == (tuple(range(20, 90)), 100)
    request = prepare("r", prompt, parameters, context_length=100, timeout_s=1)
    assert (request.prompt_ids, request.max_length) == (tuple(prompt), 100)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare("r", [], resolve(P()), context_length=100, timeout_s=1)
    assert (caught.value.param, caught.value.message) == ("prompt", "The prompt holds no token.")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (P(truncate_prompt_tokens=3), [7, 8, 9]),
        (P(truncate_prompt_tokens=3, truncation_side="right"), [0, 1, 2]),
        (P(truncate_prompt_tokens=10), list(range(10))),
        (P(truncate_prompt_tokens=99), list(range(10))),
        (P(truncate_prompt_tokens=0), []),
        (P(truncate_prompt_tokens=-1, max_new_tokens=3), [5, 6, 7, 8, 9]),
        (P(truncate_prompt_tokens=-1, max_new_tokens=9), []),
        (P(truncate_prompt_tokens=-1), [3, 4, 5, 6, 7, 8, 9]),
        (P(truncation_side="right"), list(range(10))),
    ],
)
def test_truncated_prompts(given: P, expected: list[int]) -> None:
    """As ``_token_truncation`` of vLLM (renderers/params.py), in a context of 8 tokens."""
    assert list(truncated(range(10), resolve(given), context=8)) == expected


def test_a_truncated_prompt_has_less_of_its_prefix() -> None:
    given = P(truncate_prompt_tokens=7, max_length=9)
    request = prepare("r", range(10), resolve(given), context_length=100, timeout_s=9, num_prefix_tokens=4)
    assert (request.prompt_ids, request.max_length) == (tuple(range(3, 10)), 10)
