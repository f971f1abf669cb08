"""Every generate parameter: its meaning and its range.

This file is the only list of them. The API validates requests with it and generates the OpenAPI document from it.
Each parameter means what it means in ``transformers.generate`` 5.23 (group beam search: 4.55).
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from phi3_serve.bounds import Length, Predicate, Range
from phi3_serve.pickled_by_name import pickled_by_name


def has_no_lone_surrogate(text: str) -> bool:
    """Whether ``text`` can be encoded. JSON can contain half of a surrogate pair (``"\\ud800"``), which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Characters = Annotated[str, Predicate(has_no_lone_surrogate)]
StopString = Annotated[str, Length(1, 256), Predicate(has_no_lone_surrogate)]
BadWord = Annotated[str, Length(1, 256), Predicate(has_no_lone_surrogate)]
MAX_SCHEMA = 262_144  # characters of JSON
Grammar = Annotated[str, Length(1, 65_536), Predicate(has_no_lone_surrogate)]
Choice = Annotated[str, Length(1, 4096), Predicate(has_no_lone_surrogate)]
JsonSchema = dict[str, Any] | bool | Annotated[str, Length(1, MAX_SCHEMA), Predicate(has_no_lone_surrogate)]
TokenId = Annotated[int, Range(ge=0)]
TokenIds = Annotated[list[TokenId], Length(1, 1024)]
NoneOrMoreTokenIds = Annotated[list[TokenId], Length(0, 1024)]

EarlyStopping = bool | Literal["never"]

MAX_BEAMS = 64
MAX_SEQUENCES = 64
MAX_TOP_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 2**18  # log-probabilities of one prompt: those of its tokens and of the likeliest ones beside
# All are searched for after every token, which takes 16 microseconds with 256 strings of 256 characters.
MAX_STOP_STRINGS = 256
MAX_TOKENS_LISTED = 131_072  # more than any vocabulary of the Phi-3 family has
MAX_BAD_WORDS = 256


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParameters:
    """The parameters of one generation; null means not given, and the default applies."""

    # Read by pydantic when it parses a request. A plain dictionary, so that this module does not import pydantic.
    __pydantic_config__ = {  # noqa: RUF012
        "extra": "forbid",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    max_length: Annotated[int, Range(ge=1)] | None = None
    """Maximum number of tokens of prompt and answer together, limited by the context; max_new_tokens overrides it."""
    min_length: Annotated[int, Range(ge=0)] | None = None
    """Minimum number of tokens of prompt and answer together; until then no end-of-sequence token is generated. If the
    maximum is lower, the answer ends there, with a warning."""
    max_new_tokens: Annotated[int, Range(ge=1)] | None = None
    """Maximum number of tokens of the answer."""
    min_new_tokens: Annotated[int, Range(ge=0)] | None = None
    """Minimum number of tokens of the answer; until then no end-of-sequence token is generated. If the maximum is
    lower, the answer ends there, with a warning. A structured answer or a forced call ends earlier where it is complete
    and nothing can follow."""
    do_sample: bool | None = None
    """true draws each token from the distribution; false takes the most likely token."""
    early_stopping: EarlyStopping | None = None
    """When beam search stops: true, when num_beams candidates are finished; false, when a better candidate is unlikely;
    "never", when a better candidate is impossible."""
    num_beams: Annotated[int, Range(ge=1, le=MAX_BEAMS)] | None = None
    """Number of beams of beam search; 1 turns beam search off."""
    num_beam_groups: Annotated[int, Range(ge=1, le=MAX_BEAMS)] | None = None
    """Number of groups that num_beams is divided into for diverse beam search; 1 is plain beam search."""
    diversity_penalty: Annotated[float, Range(ge=0)] | None = None
    """Subtracted from a token's score for each beam of an earlier group that chose this token at the same step."""
    temperature: Annotated[float, Range(ge=0)] | None = None
    """Divides the logits before sampling: above 1 is more varied, below 1 less. 0 takes the most likely token. /chat
    refuses 0; do_sample false does the same there."""
    top_k: Annotated[int, Range(ge=0)] | None = None
    """Sample from the k most likely tokens; 0 is off."""
    top_p: Annotated[float, Range(ge=0, le=1)] | None = None
    """Sample from the most likely tokens whose probabilities add up to this sum; 1 is off."""
    min_p: Annotated[float, Range(ge=0, le=1)] | None = None
    """Sample from the tokens that are at least this fraction as likely as the most likely token."""
    typical_p: Annotated[float, Range(gt=0, le=1)] | None = None
    """Sample from the most typical tokens whose probabilities add up to this sum; 1 is off."""
    epsilon_cutoff: Annotated[float, Range(ge=0, lt=1)] | None = None
    """Sample from the tokens with at least this probability; 0 is off."""
    eta_cutoff: Annotated[float, Range(ge=0, lt=1)] | None = None
    """Sample from the tokens above a cutoff computed from this value and the entropy; 0 is off."""
    top_h: Annotated[float, Range(gt=0, le=1)] | None = None
    """Sample from the most likely tokens that hold this fraction of the entropy."""
    repetition_penalty: Annotated[float, Range(gt=0)] | None = None
    """Above 1 lowers the score of tokens that prompt or answer already contain; 1 is off."""
    presence_penalty: Annotated[float, Range(ge=-2, le=2)] | None = None
    """Subtracted from the score of each token that the answer already contains, as in OpenAI's API; 0 is off."""
    frequency_penalty: Annotated[float, Range(ge=-2, le=2)] | None = None
    """Subtracted from a token's score for each time the answer already contains it, as in OpenAI's API; 0 is off."""
    encoder_repetition_penalty: Annotated[float, Range(gt=0)] | None = None
    """Above 1 raises the score of tokens that the prompt contains; 1 is off."""
    length_penalty: Annotated[float, Range(ge=-32, le=32)] | None = None
    """A beam's score is divided by its length raised to this power; above 0 favours longer answers."""
    no_repeat_ngram_size: Annotated[int, Range(ge=0)] | None = None
    """No n-gram of this size occurs twice in prompt and answer; 0 is off."""
    encoder_no_repeat_ngram_size: Annotated[int, Range(ge=0)] | None = None
    """No n-gram of this size of the prompt occurs in the answer; 0 is off."""
    bad_words_ids: Annotated[list[TokenIds], Length(1, 1024)] | None = None
    """Token sequences that are never generated: together at most 16,777,216 token ids times beams or sequences."""
    sequence_bias: Annotated[list[tuple[TokenIds, float]], Length(1, 1024)] | None = None
    """Pairs of a token sequence and a bias; the last token gets the bias when the other tokens precede it. At most as
    many token ids as in bad_words_ids."""
    suppress_tokens: NoneOrMoreTokenIds | None = None
    """Tokens that are never generated."""
    begin_suppress_tokens: NoneOrMoreTokenIds | None = None
    """Tokens that are not generated first."""
    forced_bos_token_id: TokenId | None = None
    """The token that is forced first, if the prompt has exactly one token."""
    forced_eos_token_id: TokenId | TokenIds | None = None
    """The token that is forced last when max_length is reached."""
    exponential_decay_length_penalty: tuple[Annotated[int, Range(ge=0)], Annotated[float, Range(gt=0)]] | None = None
    """[start, factor]: after start tokens of the answer, the score of the end-of-sequence token grows exponentially, by
    factor per token."""
    renormalize_logits: bool | None = None
    """Normalise the scores after all processors."""
    remove_invalid_values: bool | None = None
    """Replace nan and inf in the scores; otherwise the request fails."""
    guidance_scale: Annotated[float, Range(ge=0)] | None = None
    """Classifier-free guidance: how far the scores move away from those of the negative prompt; 1 is off."""
    negative_prompt_ids: TokenIds | None = None
    """Token ids of the negative prompt for guidance_scale; by default the prompt's last token."""
    num_return_sequences: Annotated[int, Range(ge=1, le=MAX_SEQUENCES)] | None = None
    """Number of answers to one prompt: with beam search at most num_beams, otherwise only with do_sample."""
    output_scores: bool | None = None
    """Add per-token scores to Details."""
    top_logprobs: Annotated[int, Range(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Add to Details the log-probability of each token and of this many most likely tokens, from the model's unchanged
    scores; not with beam search."""
    prompt_logprobs: Annotated[int, Range(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Add to Details the log-probability of each token of the prompt after the first and of this many most likely
    tokens, as in vLLM. The whole prompt is computed again, also if its start is cached. Tokens of the prompt times 1 +
    prompt_logprobs: at most 262,144."""
    return_dict_in_generate: bool | None = None
    """Add Details (token ids, finish reason) to the answer, beside Result."""
    pad_token_id: TokenId | None = None
    """The padding token; it has no effect on the answer."""
    bos_token_id: TokenId | None = None
    """The begin-of-sequence token; it has no effect unless the prompt is empty."""
    eos_token_id: TokenId | NoneOrMoreTokenIds | None = None
    """The token or tokens that end the answer; by default the model's own list, and for messages also what the chat
    template writes at the end of an answer. With beam search at most 4,096 tokens times beams. With an empty list no
    token ends the answer."""
    stop_strings: StopString | Annotated[list[StopString], Length(0, MAX_STOP_STRINGS)] | None = None
    """Strings that end the answer when they are generated; the answer contains them. They may begin in the prompt."""
    stop: StopString | Annotated[list[StopString], Length(0, MAX_STOP_STRINGS)] | None = None
    """Strings that end the answer when they are generated; the answer ends before the first of them, as in OpenAI's
    API. None of them ends in the tokens of min_new_tokens."""
    include_stop_str_in_output: bool | None = None
    """true: the answer contains the string of stop, or the token of stop_token_ids, that ends it, as in vLLM."""
    max_time: Annotated[float, Range(gt=0)] | None = None
    """Seconds after which the answer ends, wherever it is."""
    prompt_lookup_num_tokens: Annotated[int, Range(ge=1, le=64)] | None = None
    """Number of tokens to speculate from n-grams of the prompt; the answer is the same, only faster."""
    seed: Annotated[int, Range(ge=0, lt=2**63)] | None = None
    """Makes sampling repeatable: the same request with the same seed gets the same answer."""
    stop_token_ids: NoneOrMoreTokenIds | None = None
    """Tokens that end the answer, besides eos_token_id, as in vLLM. The text does not contain them."""
    ignore_eos: bool | None = None
    """true: no token of eos_token_id ends the answer, as in vLLM; stop_token_ids and stop strings do."""
    allowed_token_ids: Annotated[list[TokenId], Length(1, MAX_TOKENS_LISTED)] | None = None
    """The only tokens that are generated, as in vLLM."""
    bad_words: Annotated[list[BadWord], Length(0, MAX_BAD_WORDS)] | None = None
    """Words that the answer does not contain, as in vLLM: a word's last token is not generated after its others."""
    skip_special_tokens: bool | None = None
    """false: the text contains control tokens by their names, as in vLLM; the one that ends the answer only with
    include_stop_str_in_output."""
    spaces_between_special_tokens: bool | None = None
    """It has no effect: the decoder of Phi-3 puts no spaces between control tokens."""
    truncate_prompt_tokens: Annotated[int, Range(ge=-1)] | None = None
    """How many tokens of a longer prompt are kept, as in vLLM; -1 keeps what fits into the context beside
    max_new_tokens."""
    truncation_side: Literal["left", "right"] | None = None
    """Where a prompt loses tokens by truncate_prompt_tokens: "left", by default, keeps its end, "right" its start."""
    repeat_last_n: Annotated[int, Range(ge=-1)] | None = None
    """How many tokens at the end of prompt and answer repetition_penalty looks at, as in llama.cpp; by default and with
    -1 all."""

    json_schema: JsonSchema | None = None
    """The answer is JSON that this JSON schema allows. The schema is an object or its text; true and {} allow any JSON.
    Properties come in the order of the schema. A keyword that cannot be kept exactly is refused. Of json_schema, regex,
    choice and grammar only one can be given. Stop strings and ignore_eos have no effect with them: the answer ends
    where it is complete."""
    regex: Grammar | None = None
    r"""The whole answer matches this regular expression, in the syntax of Rust's regex crate, without look-around.
    `\d` is a digit from 0 to 9."""
    choice: Annotated[list[Choice], Length(1, 1024)] | None = None
    """The answer is one of these texts."""
    grammar: Grammar | None = None
    """The answer is a text of this context-free grammar, in the syntax of Lark as llguidance has it, or in GBNF as
    llama.cpp has it."""

    def given(self) -> dict[str, Any]:
        """The parameters that are set."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}

    def over(self, defaults: "GenerationParameters") -> "GenerationParameters":
        """These parameters; those that are not set come from ``defaults``."""
        return replace(defaults, **self.given())

    def under_lengths_of(self, nearer: "GenerationParameters") -> "GenerationParameters":
        """These defaults without max_new_tokens if ``nearer`` limits the length by max_length, and so for the minima.

        max_new_tokens overrides max_length, so a default would undo what a request says by the other name.
        """
        is_limited = nearer.max_length is not None and nearer.max_new_tokens is None
        is_raised = nearer.min_length is not None and nearer.min_new_tokens is None
        return replace(
            self,
            max_new_tokens=None if is_limited else self.max_new_tokens,
            min_new_tokens=None if is_raised else self.min_new_tokens,
        )

    @property
    def asks_for_beams(self) -> bool:
        """Whether ``num_beams`` is given and asks for beam search."""
        return self.num_beams is not None and self.num_beams > 1

    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return as_token_ids(self.eos_token_id)


def as_token_ids(given: int | list[int] | None) -> tuple[int, ...]:
    """A parameter that takes one token id or several, as a tuple; empty if it is not given."""
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)


NONE_GIVEN = GenerationParameters()
NAMES = tuple(f.name for f in fields(GenerationParameters))
