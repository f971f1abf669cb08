import pytest

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameter_defaults import CHAT_DEFAULTS
from phi3_serve.parameters import GenerationParameters as P
from phi3_serve.resolved_parameters import check_token_ids, resolve


@pytest.mark.parametrize(
    ("given", "param", "text"),
    [
        (
            P(do_sample=True, temperature=0.0),
            "temperature",
            "`temperature` is 0, but has to be a strictly positive float of at least 1e-06 when `do_sample` is true. "
            "If you're looking for greedy decoding, set `do_sample=False`.",
        ),
        (
            P(num_beams=4, num_beam_groups=3),
            "num_beam_groups",
            "`num_beam_groups` is 3, but has to divide `num_beams`, which is 4.",
        ),
        (
            P(num_beams=4, num_beam_groups=2, do_sample=True),
            "num_beam_groups",
            "`num_beam_groups` above 1 needs `do_sample` false.",
        ),
        (
            P(num_beams=4, num_beam_groups=2),
            "diversity_penalty",
            "`diversity_penalty` should be greater than `0.0` with `num_beam_groups` above 1, otherwise your groups "
            "will be identical.",
        ),
        (
            P(num_beams=4, num_beam_groups=2, diversity_penalty=0.5, guidance_scale=2.0),
            "guidance_scale",
            "`guidance_scale` is not offered with `num_beam_groups` above 1.",
        ),
        (
            P(diversity_penalty=0.5),
            "diversity_penalty",
            "`diversity_penalty` above 0 needs `num_beam_groups` above 1; it acts between groups.",
        ),
        (
            P(num_return_sequences=2, do_sample=False),
            "num_return_sequences",
            "Greedy methods without beam search do not support `num_return_sequences` different than 1 (got 2).",
        ),
        (
            P(num_return_sequences=3, num_beams=2),
            "num_return_sequences",
            "`num_return_sequences` (3) has to be smaller or equal to `num_beams` (2).",
        ),
        (
            P(prompt_lookup_num_tokens=3, num_beams=2),
            "prompt_lookup_num_tokens",
            "`prompt_lookup_num_tokens` works on a single sequence: without beam search (`num_beams`), and for one "
            "answer (`num_return_sequences`).",
        ),
        (
            P(suppress_tokens=[5, 6], forced_eos_token_id=5),
            "suppress_tokens",
            "`suppress_tokens` holds what `forced_eos_token_id` forces.",
        ),
        (
            P(num_beams=64, sequence_bias=[([1] * 900, 1.0)] * 1024),
            "sequence_bias",
            "`sequence_bias` has 921,600 token ids for 64 sequences, 58,982,400 together; the most is 16,777,216.",
        ),
        (
            P(do_sample=True, num_return_sequences=32, bad_words_ids=[[1] * 1024] * 1024),
            "bad_words_ids",
            "`bad_words_ids` has 1,048,576 token ids for 32 sequences, 33,554,432 together; the most is 16,777,216.",
        ),
        (
            P(num_beams=64, eos_token_id=list(range(1024))),
            "eos_token_id",
            "`eos_token_id` has 1,024 token ids for 64 beams, 65,536 together; the most is 4,096.",
        ),
    ],
)
def test_contradictions_are_refused(given: P, param: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(given, P())
    assert (caught.value.param, caught.value.message) == (param, text)


@pytest.mark.parametrize(
    "given",
    [
        P(num_beams=4, eos_token_id=list(range(1024))),
        P(do_sample=True, num_return_sequences=64, eos_token_id=list(range(1024))),
        P(num_beams=64, bad_words_ids=[[1] * 256] * 1024),
        P(do_sample=True, sequence_bias=[([1] * 1024, 1.0)] * 1024),
    ],
)
def test_the_bounds_themselves_are_accepted(given: P) -> None:
    resolve(given)


def test_merge_order_is_request_then_model_then_library() -> None:
    resolved = resolve(P(top_k=7), P(top_k=3, temperature=0.5, eos_token_id=[1, 2]))
    assert (resolved.top_k, resolved.temperature, resolved.top_p) == (7, 0.5, 1.0)
    assert resolved.eos_token_ids == (1, 2)
    assert CHAT_DEFAULTS.eos_token_id is None  # the model's own list stays


@pytest.mark.parametrize(
    "given",
    [
        P(suppress_tokens=[704]),
        P(forced_eos_token_id=704),
        P(eos_token_id=[1, 704]),
        P(bad_words_ids=[[1], [2, 704]]),
        P(sequence_bias=[([704], 1.0)]),
        P(negative_prompt_ids=[704]),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(given: P) -> None:
    (name,) = given.given()
    with pytest.raises(InvalidRequest) as caught:
        check_token_ids(resolve(given), 704)
    assert caught.value.message == f"`{name}` holds token id 704; this model's ids go from 0 to 703."
    check_token_ids(resolve(given), 705)


def test_suppressing_the_whole_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing is left to generate"):
        check_token_ids(resolve(P(suppress_tokens=list(range(10)))), 10)


def test_one_value_or_several_become_a_tuple() -> None:
    one = resolve(P(eos_token_id=5, forced_eos_token_id=6, stop_strings="x"))
    assert (one.eos_token_ids, one.forced_eos_token_ids, one.stop_strings) == ((5,), (6,), ("x",))
    several = resolve(P(eos_token_id=[5, 7], forced_eos_token_id=[6, 8], stop_strings=["x", "y"]))
    assert several.eos_token_ids == (5, 7)
    assert (several.forced_eos_token_ids, several.stop_strings) == ((6, 8), ("x", "y"))
    none = resolve(P())
    assert (none.eos_token_ids, none.forced_eos_token_ids, none.stop_strings) == ((), (), ())
