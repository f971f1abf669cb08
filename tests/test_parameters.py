from typing import Any

import pytest
from pydantic import TypeAdapter
from transformers import GenerationConfig

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameter_defaults import LIBRARY_DEFAULTS
from phi3_serve.parameters import NAMES, GenerationParameters
from phi3_serve.refused_parameters import NEVER, REFUSED, refuse_by_name


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
    of_others = """prompt_logprobs stop_token_ids ignore_eos allowed_token_ids bad_words repeat_last_n stop
        include_stop_str_in_output skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
        json_schema regex choice grammar"""
    assert set(NAMES) == set(honoured.split()) | set(of_openai.split()) | set(of_others.split())


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


def test_every_parameter_is_described_in_the_schema() -> None:
    schema = TypeAdapter(GenerationParameters).json_schema()
    undescribed = [name for name, entry in schema["properties"].items() if not entry.get("description")]
    assert undescribed == []
