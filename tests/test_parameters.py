from typing import Any

import pytest
from pydantic import TypeAdapter
from transformers import GenerationConfig

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import (
    CHAT_DEFAULTS,
    LIBRARY_DEFAULTS,
    NAMES,
    NEVER,
    REFUSED,
    GenerationParameters,
    check_token_ids,
    kept_by_hole,
    lengths,
    refuse_by_name,
    resolve,
)

P = GenerationParameters


def test_the_list_is_that_of_the_design() -> None:
    """Design section 4, left column."""
    honoured = """max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff top_h repetition_penalty
        encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
        sequence_bias suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
        exponential_decay_length_penalty renormalize_logits remove_invalid_values guidance_scale negative_prompt_ids
        num_return_sequences output_scores return_dict_in_generate pad_token_id bos_token_id eos_token_id stop_strings
        max_time prompt_lookup_num_tokens seed"""
    of_openai = "presence_penalty frequency_penalty top_logprobs"
    assert set(NAMES) == set(honoured.split()) | set(of_openai.split())


def test_every_attribute_of_transformers_generation_config_is_honoured_or_refused_with_a_reason() -> None:
    known = set(NAMES) | set(REFUSED) | set(NEVER)
    of_seq2seq_or_private = {"decoder_start_token_id", "transformers_version"}
    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert theirs - known - of_seq2seq_or_private == set()


def test_library_defaults_are_those_of_the_installed_transformers() -> None:
    theirs = GenerationConfig._get_default_generation_params()
    for name, value in LIBRARY_DEFAULTS.given().items():
        assert theirs.get(name, False) == value, name


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"temprature": 1}, "`temprature` is not a generate parameter; did you mean `temperature`?"),
        ({"xyz": 1}, "`xyz` is not a generate parameter."),
        ({"penalty_alpha": 0.6}, "`penalty_alpha` is not accepted: contrastive search is not offered."),
        ({"dola_layers": "high"}, "`dola_layers` is not accepted: DoLa decoding is not offered."),
        ({"force_words_ids": [[1]]}, "`force_words_ids` is not accepted: constrained beam search is not offered."),
        ({"low_memory": 0}, "`low_memory` is not accepted: contrastive search is not offered."),
        (
            {"trust_remote_code": False},
            "`trust_remote_code` is not accepted: it would run code or load a model that the request names.",
        ),
        (
            {"custom_generate": None},
            "`custom_generate` is not accepted: it would run code or load a model that the request names.",
        ),
        ({"input_ids": [1]}, "`input_ids` is not accepted: it takes a tensor; send the prompt as text."),
        (
            {"cache_implementation": "paged"},
            "`cache_implementation` is not accepted: it sets how the engine computes, not what it answers, "
            "and belongs to the server.",
        ),
        ({"__class__": 1}, "`__class__` is not a generate parameter."),
        ({"validate": 1}, "`validate` is not a generate parameter."),
    ],
)
def test_names_are_refused_with_the_reason(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_by_name(given)
    assert caught.value.message == text
    assert caught.value.param == next(iter(given))


def test_nulls_and_values_without_effect_pass() -> None:
    given = {"top_k": None, "dola_layers": None, "output_attentions": False, "use_cache": True, "penalty_alpha": 0}
    assert refuse_by_name({**given, "top_p": 0.5}) == {"top_p": 0.5}


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
            "`prompt_lookup_num_tokens` works on a single sequence: `num_beams` and `num_return_sequences` must be 1.",
        ),
        (
            P(suppress_tokens=[5, 6], forced_eos_token_id=5),
            "suppress_tokens",
            "`suppress_tokens` holds what `forced_eos_token_id` forces.",
        ),
    ],
)
def test_contradictions_are_refused(given: P, param: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(given, P())
    assert (caught.value.param, caught.value.message) == (param, text)


def test_merge_order_is_request_then_model_then_library() -> None:
    resolved = resolve(P(top_k=7), P(top_k=3, temperature=0.5, eos_token_id=[1, 2]))
    assert (resolved.top_k, resolved.temperature, resolved.top_p) == (7, 0.5, 1.0)
    assert resolved.eos_token_ids() == (1, 2)
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
        check_token_ids(given, 704)
    assert caught.value.message == f"`{name}` holds token id 704; this model's ids go from 0 to 703."
    check_token_ids(given, 705)


def test_suppressing_the_whole_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing is left to generate"):
        check_token_ids(P(suppress_tokens=list(range(10))), 10)


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
    found = lengths(given, prompt=prompt, prefix=prefix, context=100)
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
        lengths(given, prompt=prompt, prefix=0, context=100)
    assert caught.value.message == text


def test_hole_keeps_the_end_of_the_prompt() -> None:
    assert kept_by_hole(P(max_new_tokens=30), prompt=90, context=100) == 70
    assert kept_by_hole(P(max_new_tokens=10), prompt=90, context=100) == 90
    assert kept_by_hole(P(max_length=120), prompt=110, context=100) == 90
    with pytest.raises(InvalidRequest, match="We cannot infer how many new tokens are expected"):
        kept_by_hole(P(max_length=50), prompt=90, context=100)
    with pytest.raises(InvalidRequest, match="exceeds the models max length"):
        kept_by_hole(P(max_new_tokens=100), prompt=90, context=100)


def test_every_parameter_is_described_in_the_schema() -> None:
    schema = TypeAdapter(GenerationParameters).json_schema()
    undescribed = [name for name, entry in schema["properties"].items() if not entry.get("description")]
    assert undescribed == []
