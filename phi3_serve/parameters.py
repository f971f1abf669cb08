"""Every generate parameter: its meaning, its range, and how unset ones are filled.

This file is the only list of them. The API validates against it, the OpenAPI document is made of it, and
engines read it. The meaning of each is that of ``transformers.generate`` 5.23 (group beams: of 4.55).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, Predicate

from phi3_serve.errors import InvalidRequest, nearest


def has_no_lone_surrogate(text: str) -> bool:
    """Whether ``text`` is made of whole characters; JSON can spell halves (``"\\ud800"``), which encode to nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Characters = Annotated[str, Predicate(has_no_lone_surrogate)]
StopString = Annotated[Characters, Len(1, 64)]
TokenId = Annotated[int, Ge(0)]
TokenIds = Annotated[list[TokenId], Len(1, 1024)]

MAX_BEAMS = 64
MAX_SEQUENCES = 64
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParameters:
    """The parameters of one generation; null means not given, so the default below it applies."""

    # Read by pydantic where a request is parsed; a plain dictionary, so that this module needs no pydantic.
    __pydantic_config__ = {  # noqa: RUF012
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    max_length: Annotated[int, Ge(1)] | None = None
    """Most tokens of prompt and answer together; cut to the model's context. max_new_tokens wins over it."""
    min_length: Annotated[int, Ge(0)] | None = None
    """Fewest tokens of prompt and answer together before an end-of-sequence token may come."""
    max_new_tokens: Annotated[int, Ge(1)] | None = None
    """Most tokens of the answer alone."""
    min_new_tokens: Annotated[int, Ge(0)] | None = None
    """Fewest tokens of the answer alone before an end-of-sequence token may come."""
    do_sample: bool | None = None
    """Draw each token from the distribution (true) or take the likeliest (false)."""
    early_stopping: bool | Literal["never"] | None = None
    """When beam search stops: true, with num_beams finished candidates; false, when a better one is unlikely;
    "never", when none can be better."""
    num_beams: Annotated[int, Ge(1), Le(MAX_BEAMS)] | None = None
    """Beams of beam search; 1 is no beam search."""
    num_beam_groups: Annotated[int, Ge(1), Le(MAX_BEAMS)] | None = None
    """Groups that num_beams is divided into for diverse beam search; 1 is plain beam search."""
    diversity_penalty: Annotated[float, Ge(0)] | None = None
    """Taken from a token's score for each earlier beam group that chose it at the same step."""
    temperature: Annotated[float, Ge(0)] | None = None
    """Divides the logits before sampling; above 1 is more varied, below 1 more certain. Not 0: use do_sample."""
    top_k: Annotated[int, Ge(0)] | None = None
    """Sample among the k likeliest tokens; 0 is off."""
    top_p: Annotated[float, Ge(0), Le(1)] | None = None
    """Sample among the likeliest tokens whose probabilities reach this sum; 1 is off."""
    min_p: Annotated[float, Ge(0), Le(1)] | None = None
    """Sample among tokens at least this fraction as likely as the likeliest."""
    typical_p: Annotated[float, Gt(0), Le(1)] | None = None
    """Sample among the most typical tokens whose probabilities reach this sum; 1 is off."""
    epsilon_cutoff: Annotated[float, Ge(0), Lt(1)] | None = None
    """Sample among tokens of at least this probability; 0 is off."""
    eta_cutoff: Annotated[float, Ge(0), Lt(1)] | None = None
    """Sample among tokens above a cutoff made of this and the entropy; 0 is off."""
    top_h: Annotated[float, Gt(0), Le(1)] | None = None
    """Sample among the likeliest tokens that hold this fraction of the entropy."""
    repetition_penalty: Annotated[float, Gt(0)] | None = None
    """Scales down the score of tokens already in prompt or answer; 1 is off."""
    presence_penalty: Annotated[float, Ge(-2), Le(2)] | None = None
    """Taken from the score of each token that is in the answer already, as OpenAI's API defines it; 0 is off."""
    frequency_penalty: Annotated[float, Ge(-2), Le(2)] | None = None
    """Taken from a token's score for each time it is in the answer already, as OpenAI's API defines it; 0 is off."""
    encoder_repetition_penalty: Annotated[float, Gt(0)] | None = None
    """Scales up the score of tokens of the prompt; 1 is off."""
    length_penalty: Annotated[float, Ge(-32), Le(32)] | None = None
    """Exponent of the length by which a beam's score is divided; above 0 favours longer answers."""
    no_repeat_ngram_size: Annotated[int, Ge(0)] | None = None
    """No n-gram of this size occurs twice; 0 is off."""
    encoder_no_repeat_ngram_size: Annotated[int, Ge(0)] | None = None
    """No n-gram of this size of the prompt occurs in the answer; 0 is off."""
    bad_words_ids: Annotated[list[TokenIds], Len(1, 1024)] | None = None
    """Token sequences that may not be generated."""
    sequence_bias: Annotated[list[tuple[TokenIds, float]], Len(1, 1024)] | None = None
    """Pairs of a token sequence and what is added to its last token's score when the rest precedes it."""
    suppress_tokens: TokenIds | None = None
    """Tokens that are never generated."""
    begin_suppress_tokens: TokenIds | None = None
    """Tokens that are not generated first."""
    forced_bos_token_id: TokenId | None = None
    """The token forced as the first after a prompt of one token."""
    forced_eos_token_id: TokenId | TokenIds | None = None
    """The token forced as the last when max_length is reached."""
    exponential_decay_length_penalty: tuple[Annotated[int, Ge(0)], Annotated[float, Gt(0)]] | None = None
    """[start, factor]: after start tokens of the answer the score of the end grows by factor each token."""
    renormalize_logits: bool | None = None
    """Normalise the scores after all processors."""
    remove_invalid_values: bool | None = None
    """Replace nan and inf in the scores instead of failing."""
    guidance_scale: Annotated[float, Ge(0)] | None = None
    """Classifier-free guidance: how far the scores move from those of the negative prompt; 1 is off."""
    negative_prompt_ids: TokenIds | None = None
    """Token ids of the negative prompt of guidance_scale; without it, the prompt's last token."""
    num_return_sequences: Annotated[int, Ge(1), Le(MAX_SEQUENCES)] | None = None
    """Answers to one prompt; with beams at most num_beams, else only with do_sample."""
    output_scores: bool | None = None
    """Give per-token scores in Details."""
    top_logprobs: Annotated[int, Ge(0), Le(MAX_TOP_LOGPROBS)] | None = None
    """Give in Details the log-probability of each token under the model's own scores, and that of so many of the
    likeliest ones; not with beams."""
    return_dict_in_generate: bool | None = None
    """Give Details (token ids, finish reason) beside Result."""
    pad_token_id: TokenId | None = None
    """The padding token; it has no effect on the answer."""
    bos_token_id: TokenId | None = None
    """The begin-of-sequence token; it has no effect on a prompt that is not empty."""
    eos_token_id: TokenId | TokenIds | None = None
    """The token, or list of tokens, that end the answer; by default the model's own list."""
    stop_strings: StopString | Annotated[list[StopString], Len(0, 16)] | None = None
    """Strings that end the answer once they are generated; they stay in it."""
    max_time: Annotated[float, Gt(0)] | None = None
    """Seconds after which the answer ends as it is."""
    prompt_lookup_num_tokens: Annotated[int, Ge(1), Le(64)] | None = None
    """Speculate this many tokens from n-grams of the prompt; the answer stays the same, it only comes faster."""
    seed: Annotated[int, Ge(0), Lt(2**63)] | None = None
    """Makes sampling repeatable: the same request with the same seed gets the same answer."""

    def given(self) -> dict[str, Any]:
        """The parameters that are set."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}

    def over(self, defaults: "GenerationParameters") -> "GenerationParameters":
        """These parameters, and those of ``defaults`` where these are not set."""
        return replace(defaults, **self.given())

    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, as a tuple whatever form they were given in."""
        eos = self.eos_token_id
        return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


NONE_GIVEN = GenerationParameters()
NAMES = tuple(f.name for f in fields(GenerationParameters))

# KAITO's own (inference_api.py, last version with /chat); eos is left to the model's own list.
CHAT_DEFAULTS = GenerationParameters(
    max_length=200,
    min_length=0,
    do_sample=True,
    early_stopping=False,
    num_beams=1,
    temperature=1.0,
    top_k=10,
    top_p=1.0,
    typical_p=1.0,
    repetition_penalty=1.0,
)

# transformers 5.23, GenerationConfig._get_default_generation_params: below the model's own generation config.
# max_length is missing on purpose: unset, it means 20 new tokens.
LIBRARY_DEFAULTS = GenerationParameters(
    min_length=0,
    do_sample=False,
    early_stopping=False,
    num_beams=1,
    num_beam_groups=1,
    diversity_penalty=0.0,
    temperature=1.0,
    top_k=50,
    top_p=1.0,
    typical_p=1.0,
    epsilon_cutoff=0.0,
    eta_cutoff=0.0,
    repetition_penalty=1.0,
    encoder_repetition_penalty=1.0,
    length_penalty=1.0,
    no_repeat_ngram_size=0,
    encoder_no_repeat_ngram_size=0,
    num_return_sequences=1,
    output_scores=False,
    return_dict_in_generate=False,
    renormalize_logits=False,
    remove_invalid_values=False,
)
LIBRARY_DEFAULT_NEW_TOKENS = 20

_CODE = "it would run code or load a model that the request names"
_TENSOR = "it takes a tensor; send the prompt as text"
_KNOB = "it sets how the engine computes, not what it answers, and belongs to the server"
_CONTRASTIVE = "contrastive search is not offered"
_DOLA = "DoLa decoding is not offered"
_CONSTRAINED = "constrained beam search is not offered"
_INTERNALS = "the model's internals are not returned"
_ASSISTED = "decoding with a second model is not offered; prompt_lookup_num_tokens speculates without one"
_WATERMARK = "watermarking is not offered"

# Refused by name with the reason. A null, or one of the listed values, asks for nothing and is let pass.
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
# Refused whatever the value is.
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


def refuse_by_name(given: Mapping[str, object]) -> dict[str, object]:
    """The parameters without nulls and without-effect ones; InvalidRequest for a refused or unknown name."""
    kept: dict[str, object] = {}
    for name, value in given.items():
        if name in NEVER:
            raise InvalidRequest(f"`{name}` is not accepted: {NEVER[name]}.", name)
        if name in REFUSED:
            reason, without_effect = REFUSED[name]
            if value is not None and not any(
                value is v or (value == v and type(value) is type(v)) for v in without_effect
            ):
                raise InvalidRequest(f"`{name}` is not accepted: {reason}.", name)
        elif name not in NAMES:
            hint = nearest(name, NAMES)
            raise InvalidRequest(
                f"`{name[:64]}` is not a generate parameter" + (f"; did you mean `{hint}`?" if hint else "."),
                name[:64],
            )
        elif value is not None:
            kept[name] = value
    return kept


def resolve(given: GenerationParameters, *defaults: GenerationParameters) -> GenerationParameters:
    """``given`` over ``defaults``, the first first, over the library's, checked for contradictions."""
    resolved = given
    for below in (*defaults, LIBRARY_DEFAULTS):
        resolved = resolved.over(below)
    for check in _CHECKS:
        check(resolved)
    return resolved


def check_token_ids(parameters: GenerationParameters, vocab_size: int) -> None:
    """InvalidRequest where a parameter names a token id that the model's vocabulary lacks."""
    for name, ids in _named_token_ids(parameters):
        if worst := [i for i in ids if not 0 <= i < vocab_size]:
            raise InvalidRequest(
                f"`{name}` holds token id {worst[0]}; this model's ids go from 0 to {vocab_size - 1}.", name
            )
    suppressed = set(parameters.suppress_tokens or ())
    if len(suppressed) >= vocab_size:
        raise InvalidRequest(
            "`suppress_tokens` holds the whole vocabulary; nothing is left to generate.", "suppress_tokens"
        )


def check_prompt_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """InvalidRequest where a prompt of token ids names one that the model's vocabulary lacks."""
    if (worst := max(token_ids, default=0)) >= vocab_size:
        raise InvalidRequest(
            f"`prompt` holds token id {worst}; this model's ids go from 0 to {vocab_size - 1}.", "prompt"
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long prompt and answer together must and may get, in tokens."""

    min_length: int
    max_length: int


def lengths(parameters: GenerationParameters, *, prompt: int, prefix: int, context: int) -> Lengths:
    """The total lengths that ``parameters`` ask for, with a prompt of ``prompt`` tokens.

    ``prefix`` of these came from the request's ``prefix`` and do not count against max_length and min_length
    (transformers 5.23, TextGenerationPipeline._forward). Totals are cut to ``context``.

    Raises:
        InvalidRequest: the prompt leaves no room for an answer, or min_length is beyond max_length.
    """
    if prompt >= context:
        raise InvalidRequest(
            f"The prompt has {prompt} tokens, but this model's context holds {context}, answer included.",
            "prompt",
        )
    if parameters.max_new_tokens is not None:
        longest = prompt + parameters.max_new_tokens
    elif parameters.max_length is not None:
        longest = parameters.max_length + prefix
        if prompt >= longest:
            raise InvalidRequest(
                f"Input length of input_ids is {prompt}, but `max_length` is set to {parameters.max_length}. "
                "`max_length` counts prompt and answer together: increase it, or set `max_new_tokens`.",
                "max_length",
            )
    else:
        longest = prompt + LIBRARY_DEFAULT_NEW_TOKENS
    if parameters.min_new_tokens is not None:
        shortest, name = prompt + parameters.min_new_tokens, "min_new_tokens"
    else:
        shortest, name = (parameters.min_length or 0), "min_length"
        shortest += prefix if shortest else 0
    if shortest > longest:
        raise InvalidRequest(
            f"`{name}` asks for at least {shortest} tokens of prompt and answer, but the most allowed is {longest}.",
            name,
        )
    return Lengths(min_length=min(shortest, context), max_length=min(longest, context))


def kept_by_hole(parameters: GenerationParameters, *, prompt: int, context: int) -> int:
    """How many of the prompt's last tokens ``handle_long_generation`` "hole" keeps (TextGenerationPipeline.preprocess).

    Raises:
        InvalidRequest: the answer alone fills the context, or its length cannot be inferred.
    """
    if parameters.max_new_tokens is not None:
        answer = parameters.max_new_tokens
    else:
        longest = prompt + LIBRARY_DEFAULT_NEW_TOKENS if parameters.max_length is None else parameters.max_length
        answer = longest - prompt
        if answer < 0:
            raise InvalidRequest("We cannot infer how many new tokens are expected", "handle_long_generation")
    if prompt + answer <= context:
        return prompt
    if answer >= context:
        raise InvalidRequest(
            "We cannot use `hole` to handle this generation the number of desired tokens exceeds the models max length",
            "handle_long_generation",
        )
    return context - answer


def _named_token_ids(parameters: GenerationParameters) -> Iterable[tuple[str, Iterable[int]]]:
    for name in (
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "negative_prompt_ids",
    ):
        value = getattr(parameters, name)
        if value is not None:
            yield name, ((value,) if isinstance(value, int) else value)
    for ids in parameters.bad_words_ids or ():
        yield "bad_words_ids", ids
    for ids, _ in parameters.sequence_bias or ():
        yield "sequence_bias", ids


def _temperature_is_positive(p: GenerationParameters) -> None:
    if p.do_sample and p.temperature is not None and p.temperature < 1e-6:
        raise InvalidRequest(
            f"`temperature` is {p.temperature:g}, but has to be a strictly positive float of at least 1e-06 when "
            "`do_sample` is true. If you're looking for greedy decoding, set `do_sample=False`.",
            "temperature",
        )


def _groups_divide_beams(p: GenerationParameters) -> None:
    beams, groups = p.num_beams or 1, p.num_beam_groups or 1
    if groups > 1 and (groups > beams or beams % groups):
        raise InvalidRequest(
            f"`num_beam_groups` is {groups}, but has to divide `num_beams`, which is {beams}.",
            "num_beam_groups",
        )
    if groups > 1 and p.do_sample:
        raise InvalidRequest("`num_beam_groups` above 1 needs `do_sample` false.", "num_beam_groups")
    if groups > 1 and not p.diversity_penalty:
        raise InvalidRequest(
            "`diversity_penalty` should be greater than `0.0` with `num_beam_groups` above 1, otherwise your groups "
            "will be identical.",
            "diversity_penalty",
        )
    if groups > 1 and p.guidance_scale not in (None, 1.0):  # transformers 4.55 mixed up the groups' contexts
        raise InvalidRequest("`guidance_scale` is not offered with `num_beam_groups` above 1.", "guidance_scale")
    if groups == 1 and p.diversity_penalty:
        raise InvalidRequest(
            "`diversity_penalty` above 0 needs `num_beam_groups` above 1; it acts between groups.",
            "diversity_penalty",
        )


def _sequences_fit_the_search(p: GenerationParameters) -> None:
    sequences, beams = p.num_return_sequences or 1, p.num_beams or 1
    if sequences == 1:
        return
    if beams == 1 and not p.do_sample:
        raise InvalidRequest(
            "Greedy methods without beam search do not support `num_return_sequences` different than 1 "
            f"(got {sequences}).",
            "num_return_sequences",
        )
    if beams > 1 and sequences > beams:
        raise InvalidRequest(
            f"`num_return_sequences` ({sequences}) has to be smaller or equal to `num_beams` ({beams}).",
            "num_return_sequences",
        )


def _lookup_is_single(p: GenerationParameters) -> None:
    if p.prompt_lookup_num_tokens is not None and ((p.num_beams or 1) > 1 or (p.num_return_sequences or 1) > 1):
        raise InvalidRequest(
            "`prompt_lookup_num_tokens` works on a single sequence: `num_beams` and `num_return_sequences` must be 1.",
            "prompt_lookup_num_tokens",
        )


def _logprobs_are_of_one_search(p: GenerationParameters) -> None:
    if p.top_logprobs is not None and (p.num_beams or 1) > 1:
        raise InvalidRequest(
            "`top_logprobs` is not offered with `num_beams` above 1; `output_scores` gives the beams' scores.",
            "top_logprobs",
        )


def _suppressed_is_not_forced(p: GenerationParameters) -> None:
    forced = p.forced_eos_token_id
    forced_ids = () if forced is None else (forced,) if isinstance(forced, int) else tuple(forced)
    if forced_ids and set(forced_ids) <= set(p.suppress_tokens or ()):
        raise InvalidRequest("`suppress_tokens` holds what `forced_eos_token_id` forces.", "suppress_tokens")


_CHECKS: tuple[Callable[[GenerationParameters], None], ...] = (
    _temperature_is_positive,
    _groups_divide_beams,
    _sequences_fit_the_search,
    _lookup_is_single,
    _logprobs_are_of_one_search,
    _suppressed_is_not_forced,
)
