"""The generate parameters of one request after every default is filled in and every contradiction is refused."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameter_defaults import LIBRARY_DEFAULTS
from phi3_serve.parameters import EarlyStopping, GenerationParameters, as_token_ids
from phi3_serve.tool_calls import ToolCalls

StructuredParameter = Literal["json_schema", "regex", "choice", "grammar"]
StructuredKind = StructuredParameter | Literal["tools"]
STRUCTURED_PARAMETERS: tuple[StructuredParameter, ...] = get_args(StructuredParameter)
MAX_SEQUENCE_IDS = 2**24  # in bad_words_ids or sequence_bias, times the sequences that each step compares them with
MAX_ENDS_OF_BEAMS = 2**12  # end-of-sequence tokens times beams: each step ranks so many candidates


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What the text of an answer must be; the value is that of the parameter ``kind``, or ``ToolCalls`` of tools."""

    kind: StructuredKind
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedParameters:
    """``GenerationParameters`` with a value for everything that is decided.

    A field is optional only if None means something that no value means. An empty sequence means not given.
    """

    do_sample: bool
    num_return_sequences: int
    output_scores: bool
    return_dict_in_generate: bool
    # length, in tokens
    max_length: int | None = None  # None and max_new_tokens None: LIBRARY_DEFAULT_NEW_TOKENS
    min_length: int
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None  # None: min_length applies
    # beam search
    num_beams: int
    num_beam_groups: int
    diversity_penalty: float
    length_penalty: float
    early_stopping: EarlyStopping
    # warpers
    temperature: float
    top_k: int
    top_p: float
    min_p: float = 0.0
    typical_p: float
    epsilon_cutoff: float
    eta_cutoff: float
    top_h: float | None = None  # 1 still limits sampling to the top-h candidates
    # processors
    repetition_penalty: float
    repeat_last_n: int = -1  # tokens that repetition_penalty looks at; -1 is all
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    encoder_repetition_penalty: float
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int
    bad_words_ids: Sequence[Sequence[int]] = ()
    sequence_bias: Sequence[tuple[Sequence[int], float]] = ()
    bad_words: Sequence[str] = ()
    bad_words_ids_of_answer: Sequence[Sequence[int]] = ()  # of bad_words, which only a tokenizer can encode
    allowed_token_ids: Sequence[int] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool
    remove_invalid_values: bool
    guidance_scale: float = 1.0
    negative_prompt_ids: Sequence[int] = ()
    # special tokens and other ends
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()  # all tokens that end the answer, those of stop_token_ids included
    stop_token_ids: Sequence[int] = ()
    ignored_eos_token_ids: tuple[int, ...] = ()  # end nothing, but do not count for the minimum length either
    stop_strings: tuple[str, ...] = ()  # stay in the text
    stop: tuple[str, ...] = ()  # are cut off, unless include_stop_str_in_output
    max_time: float | None = None  # seconds
    # text
    structured_output: StructuredOutput | None = None
    without_effect: tuple[str, ...] = ()  # parameters that a structured output turns off
    replaced_by_call: StructuredKind | None = None  # what the text would be if no call were forced
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None  # -1 is what the context holds
    truncation_side: Literal["left", "right"] = "left"
    # the rest
    top_logprobs: int | None = None  # 0 asks for the log-probability of the chosen token alone
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt
    prompt_lookup_num_tokens: int | None = None
    seed: int | None = None

    @property
    def is_beam_search(self) -> bool:
        """Whether the answers are found by beam search, plain or in groups."""
        return self.num_beams > 1

    @property
    def num_sequences(self) -> int:
        """Sequences that are generated at once: beams, or answers."""
        return max(self.num_beams, self.num_return_sequences)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken at each step, without beam search."""
        return not self.do_sample and not self.is_beam_search

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt is run beside the prompt (classifier-free guidance)."""
        return self.guidance_scale != 1.0


def resolve(
    given: GenerationParameters, *defaults: GenerationParameters, tool_calls: ToolCalls | None = None
) -> ResolvedParameters:
    """``given``, completed by ``defaults`` in their order, then by the library's defaults.

    ``tool_calls``: those that the answer is, or may be.

    Raises:
        InvalidRequest: two parameters contradict each other.
    """
    merged = given
    for below in (*defaults, LIBRARY_DEFAULTS):
        merged = merged.over(below)
    values = merged.given()
    structured = next(filter(None, map(_structured_output, (given, *defaults))), None)
    if tool_calls is not None:
        if tool_calls.is_forced and structured is not None:
            values["replaced_by_call"] = structured.kind
        structured = _with_calls(tool_calls, structured)
    if structured is not None:
        values |= {"structured_output": structured, "without_effect": _turned_off(values)}
    for kind in STRUCTURED_PARAMETERS:
        values.pop(kind, None)
    ends = as_token_ids(values.pop("eos_token_id", None))
    ignored = values.pop("ignore_eos", False)
    values["eos_token_ids"] = tuple(dict.fromkeys((*(() if ignored else ends), *values.get("stop_token_ids", ()))))
    values["ignored_eos_token_ids"] = ends if ignored else ()
    values["forced_eos_token_ids"] = as_token_ids(values.pop("forced_eos_token_id", None))
    for name in ("stop_strings", "stop"):
        strings = values.pop(name, ())
        values[name] = (strings,) if isinstance(strings, str) else tuple(strings)
    values.pop("spaces_between_special_tokens", None)  # there are none with either value
    resolved = ResolvedParameters(**values)
    for check in _CHECKS:
        check(resolved)
    return resolved


def _structured_output(given: GenerationParameters) -> StructuredOutput | None:
    """What ``given`` says of the text of the answer.

    Raises:
        InvalidRequest: it says two things.
    """
    found = [StructuredOutput(k, value) for k in STRUCTURED_PARAMETERS if (value := getattr(given, k)) is not None]
    if len(found) > 1:
        one, other = found[0].kind, found[1].kind
        raise InvalidRequest(f"`{one}` and `{other}` exclude each other; send one of them.", other)
    return found[0] if found else None


def _with_calls(calls: ToolCalls, text: StructuredOutput | None) -> StructuredOutput | None:
    """What an answer must be that is calls of tools or, if they are not forced, ``text``.

    Raises:
        InvalidRequest: the two cannot be one grammar.
    """
    if text is not None and not calls.is_forced:
        if text.kind != "json_schema":
            raise InvalidRequest(
                f"`tools` and `{text.kind}` exclude each other, unless a call is forced or forbidden.", text.kind
            )
        calls = replace(calls, text_schema=text.value)
    return StructuredOutput("tools", calls) if calls.needs_grammar else None


def _turned_off(values: dict[str, Any]) -> tuple[str, ...]:
    """Remove from ``values`` what would end a structured answer before it is complete, or add to it; their names."""
    return tuple(name for name in _OTHER_ENDS if values.pop(name, None))


_OTHER_ENDS = ("stop", "stop_strings", "ignore_eos", "include_stop_str_in_output")


def check_token_ids(parameters: ResolvedParameters, vocab_size: int) -> None:
    """Raise InvalidRequest if a parameter names a token id that the model's vocabulary does not have."""
    for name, ids in _named_token_ids(parameters):
        for extreme in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= extreme < vocab_size:
                raise InvalidRequest(
                    f"`{name}` holds token id {extreme}; this model's ids go from 0 to {vocab_size - 1}.", name
                )
    if parameters.allowed_token_ids and set(parameters.allowed_token_ids) <= set(parameters.suppress_tokens):
        raise InvalidRequest("`suppress_tokens` holds all of `allowed_token_ids`.", "suppress_tokens")
    if len(set(parameters.suppress_tokens)) >= vocab_size:
        raise InvalidRequest(
            "`suppress_tokens` holds the whole vocabulary; nothing is left to generate.", "suppress_tokens"
        )


def _named_token_ids(p: ResolvedParameters) -> Iterable[tuple[str, Sequence[int]]]:
    yield "allowed_token_ids", p.allowed_token_ids
    yield "suppress_tokens", p.suppress_tokens
    yield "begin_suppress_tokens", p.begin_suppress_tokens
    yield "forced_bos_token_id", _as_list(p.forced_bos_token_id)
    yield "forced_eos_token_id", p.forced_eos_token_ids
    yield "pad_token_id", _as_list(p.pad_token_id)
    yield "bos_token_id", _as_list(p.bos_token_id)
    yield "stop_token_ids", p.stop_token_ids
    yield "eos_token_id", (*p.eos_token_ids, *p.ignored_eos_token_ids)
    yield "negative_prompt_ids", p.negative_prompt_ids
    for ids in p.bad_words_ids:
        yield "bad_words_ids", ids
    for ids, _ in p.sequence_bias:
        yield "sequence_bias", ids


def _as_list(token_id: int | None) -> list[int]:
    return [] if token_id is None else [token_id]


def _temperature_is_positive(p: ResolvedParameters) -> None:
    if p.do_sample and p.temperature < 1e-6:
        raise InvalidRequest(
            f"`temperature` is {p.temperature:g}, but has to be a strictly positive float of at least 1e-06 when "
            "`do_sample` is true. If you're looking for greedy decoding, set `do_sample=False`.",
            "temperature",
        )


def _groups_divide_beams(p: ResolvedParameters) -> None:
    beams, groups = p.num_beams, p.num_beam_groups
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
    if groups > 1 and p.is_guided:  # transformers 4.55 mixed up the contexts of the groups
        raise InvalidRequest("`guidance_scale` is not offered with `num_beam_groups` above 1.", "guidance_scale")
    if groups == 1 and p.diversity_penalty:
        raise InvalidRequest(
            "`diversity_penalty` above 0 needs `num_beam_groups` above 1; it acts between groups.",
            "diversity_penalty",
        )


def _sequences_fit_the_search(p: ResolvedParameters) -> None:
    if p.num_return_sequences == 1:
        return
    if p.is_greedy:
        raise InvalidRequest(
            "Greedy methods without beam search do not support `num_return_sequences` different than 1 "
            f"(got {p.num_return_sequences}).",
            "num_return_sequences",
        )
    if p.is_beam_search and p.num_return_sequences > p.num_beams:
        raise InvalidRequest(
            f"`num_return_sequences` ({p.num_return_sequences}) has to be smaller or equal to `num_beams` "
            f"({p.num_beams}).",
            "num_return_sequences",
        )


def _lookup_has_one_sequence(p: ResolvedParameters) -> None:
    if p.prompt_lookup_num_tokens is not None and (p.is_beam_search or p.num_return_sequences > 1):
        raise InvalidRequest(
            "`prompt_lookup_num_tokens` works on a single sequence: without beam search (`num_beams`), and for one "
            "answer (`num_return_sequences`).",
            "prompt_lookup_num_tokens",
        )


def _logprobs_need_no_beams(p: ResolvedParameters) -> None:
    if p.top_logprobs is not None and p.is_beam_search:
        raise InvalidRequest(
            "`top_logprobs` is not offered with beam search (`num_beams`); `output_scores` of /chat gives the beams' "
            "scores.",
            "top_logprobs",
        )


def _steps_are_bounded(p: ResolvedParameters) -> None:
    """One request must not slow the steps of all others."""
    num_rows = max(p.num_beams, p.num_return_sequences)
    for name, sequences in (
        ("bad_words_ids", p.bad_words_ids),
        ("sequence_bias", [ids for ids, _ in p.sequence_bias]),
    ):
        num_ids = sum(map(len, sequences))
        if num_ids * num_rows > MAX_SEQUENCE_IDS:
            raise InvalidRequest(
                f"`{name}` has {num_ids:,} token ids for {num_rows} sequences, {num_ids * num_rows:,} together; "
                f"the most is {MAX_SEQUENCE_IDS:,}.",
                name,
            )
    if p.is_beam_search and (num_ends := len(p.eos_token_ids)) * p.num_beams > MAX_ENDS_OF_BEAMS:
        raise InvalidRequest(
            f"`eos_token_id` has {num_ends:,} token ids for {p.num_beams} beams, {num_ends * p.num_beams:,} together; "
            f"the most is {MAX_ENDS_OF_BEAMS:,}.",
            "eos_token_id",
        )


def _structured_answer_can_end(p: ResolvedParameters) -> None:
    if p.structured_output is not None and not p.eos_token_ids:
        kind = p.structured_output.kind
        raise InvalidRequest(f"`eos_token_id` is empty, but a token has to end the answer of `{kind}`.", "eos_token_id")


def _suppressed_is_not_forced(p: ResolvedParameters) -> None:
    if p.forced_eos_token_ids and set(p.forced_eos_token_ids) <= set(p.suppress_tokens):
        raise InvalidRequest("`suppress_tokens` holds what `forced_eos_token_id` forces.", "suppress_tokens")


_CHECKS: tuple[Callable[[ResolvedParameters], None], ...] = (
    _temperature_is_positive,
    _groups_divide_beams,
    _sequences_fit_the_search,
    _lookup_has_one_sequence,
    _logprobs_need_no_beams,
    _suppressed_is_not_forced,
    _structured_answer_can_end,
    _steps_are_bounded,
)
