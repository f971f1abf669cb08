import math
import time

import pytest

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters as P
from phi3_serve.prepare import kept_by_hole, lengths, prepare
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
        (
            P(max_length=20, min_length=30),
            10,
            "`min_length` asks for at least 30 tokens of prompt and answer, but the most allowed is 20.",
        ),
        (
            P(max_new_tokens=2, min_new_tokens=3),
            10,
            "`min_new_tokens` asks for at least 13 tokens of prompt and answer, but the most allowed is 12.",
        ),
    ],
)
def test_lengths_that_leave_no_room_are_refused(given: P, prompt: int, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lengths(resolve(given), prompt=prompt, prefix=0, context=100)
    assert caught.value.message == text


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
