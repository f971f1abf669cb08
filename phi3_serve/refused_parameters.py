"""Parameters of ``transformers.generate`` that are refused by name, each with the reason."""

from collections.abc import Iterable, Mapping

from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.parameters import NAMES

_CODE = "it would run code or load a model that the request names"
_TENSOR = "it takes a tensor; send the prompt as text"
_KNOB = "it sets how the engine computes, not what it answers, and belongs to the server"
_CONTRASTIVE = "contrastive search is not offered"
_DOLA = "DoLa decoding is not offered"
_CONSTRAINED = "constrained beam search is not offered"
_INTERNALS = "the model's internals are not returned"
_ASSISTED = "decoding with a second model is not offered; prompt_lookup_num_tokens speculates without one"
_WATERMARK = "watermarking is not offered"

# Refused by name, with the reason. A null and the listed values have no effect and are accepted.
REFUSED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "penalty_alpha": (_CONTRASTIVE, (0, 0.0)),
    "low_memory": (_CONTRASTIVE, (False,)),
    "dola_layers": (_DOLA, ()),
    "constraints": (_CONSTRAINED, ()),
    "force_words_ids": (_CONSTRAINED, ()),
    "watermarking_config": (_WATERMARK, ()),
    "token_healing": ("token healing is not offered", (False,)),
    "output_attentions": (_INTERNALS, (False,)),
    "output_hidden_states": (_INTERNALS, (False,)),
    "output_logits": (_INTERNALS, (False,)),
    "use_mtp": (_ASSISTED, (False,)),
    "is_assistant": (_ASSISTED, (False,)),
    "num_assistant_tokens": (_ASSISTED, ()),
    "num_assistant_tokens_schedule": (_ASSISTED, ()),
    "assistant_confidence_threshold": (_ASSISTED, ()),
    "assistant_early_exit": (_ASSISTED, ()),
    "assistant_lookbehind": (_ASSISTED, ()),
    "target_lookbehind": (_ASSISTED, ()),
    "assistant_ensemble_weight": (_ASSISTED, ()),
    "speculation_type": (_ASSISTED, ()),
    "max_matching_ngram_size": (_ASSISTED, ()),
    "use_cache": (_KNOB, (True,)),
    "cache_implementation": (_KNOB, ()),
    "cache_config": (_KNOB, ()),
    "compile_config": (_KNOB, ()),
    "disable_compile": (_KNOB, (False,)),
    "max_cache_len": (_KNOB, ()),
    "prefill_chunk_size": (_KNOB, ()),
    "synced_gpus": (_KNOB, (False,)),
    "continuous_batching_config": (_KNOB, ()),
}
# Refused with any value.
NEVER: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "custom_generate",
            "trust_remote_code",
            "generation_config",
            "assistant_model",
            "assistant_tokenizer",
            "logits_processor",
            "stopping_criteria",
            "prefix_allowed_tokens_fn",
            "streamer",
            "tokenizer",
        ),
        _CODE,
    ),
    **dict.fromkeys(
        (
            "inputs",
            "input_ids",
            "inputs_embeds",
            "attention_mask",
            "negative_prompt_attention_mask",
            "position_ids",
            "past_key_values",
            "labels",
            "logits_to_keep",
            "decoder_input_ids",
            "encoder_outputs",
        ),
        _TENSOR,
    ),
}


def refuse_by_name(given: Mapping[str, object], other_names: Iterable[str] = ()) -> dict[str, object]:
    """``given`` without nulls and without values that have no effect.

    ``other_names`` are names that the caller takes besides, for an error that says the nearest name.

    Raises:
        InvalidRequest: a name is refused or unknown.
    """
    kept: dict[str, object] = {}
    for name, value in given.items():
        if name in NEVER:
            raise InvalidRequest(f"`{name}` is not accepted: {NEVER[name]}.", name)
        if name in REFUSED:
            reason, without_effect = REFUSED[name]
            if value is not None and not is_one_of(value, without_effect):
                raise InvalidRequest(f"`{name}` is not accepted: {reason}.", name)
        elif name not in NAMES:
            hint = did_you_mean(name, [*NAMES, *other_names])
            raise InvalidRequest(f"`{name[:64]}` is not a generate parameter{hint}", name[:64])
        elif value is not None:
            kept[name] = value
    return kept


def is_one_of(value: object, listed: Iterable[object]) -> bool:
    """Whether ``value`` is listed with the same type: JSON's true is not 1."""
    return any(value == v and type(value) is type(v) for v in listed)
