"""What other servers call a generate parameter, and what the value means there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import MAX_BEAMS

NO_LIMIT = -1  # as max_tokens: none but the context
WHOLE_CONTEXT = 2**31 - 1  # a max_length beyond every context; it is cut to the model's
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OtherName:
    """What another server's name of a generate parameter means here."""

    parameter: str
    servers: str
    note: str = ""  # what else the reference says
    schema: Json | None = None  # JSON schema of the value; that of the parameter if None
    parameters: Callable[[Any, Json], Json] | None = None  # of the value and its siblings; the value itself if None

    def parameters_of(self, value: Any, siblings: Json) -> Json:
        """The generate parameters that ``value`` sets; ``siblings`` are the fields beside it."""
        return {self.parameter: value} if self.parameters is None else self.parameters(value, siblings)


def sequence_bias(logit_bias: Mapping[str, float]) -> list[tuple[list[int], float]]:
    """OpenAI's ``logit_bias``, from token ids as text to biases, as the parameter ``sequence_bias``.

    Raises:
        InvalidRequest: a key is no token id.
    """
    wrong = [token for token in logit_bias if not token.isascii() or not token.isdigit() or len(token) > 9]
    if wrong:
        named = ", ".join(repr(token[:32]) for token in wrong[:8])
        raise InvalidRequest(f'`logit_bias` names {named}; its keys are token ids, such as "306".', "logit_bias")
    return [([int(token)], bias) for token, bias in logit_bias.items()]


def _sequence_bias(value: Any, _: Json) -> Json:
    if not value:  # llama.cpp's default is an empty list
        return {}
    if not isinstance(value, dict):
        return {"sequence_bias": value}
    return {"sequence_bias": [list(pair) for pair in sequence_bias(value)]}  # as JSON has them


def _max_tokens(value: Any, siblings: Json) -> Json:
    """-1 is no limit but the context, as in llama.cpp, which takes it under OpenAI's name, too."""
    if value != NO_LIMIT:
        return {"max_new_tokens": value}
    return {} if siblings.get("num_ctx") is not None else {"max_length": WHOLE_CONTEXT}


def _predict(value: Any, siblings: Json) -> Json:
    """-2 fills the context, which -1 does here, too."""
    return _max_tokens(NO_LIMIT if value == -2 else value, siblings)


def _top_k(value: Any, _: Json) -> Json:
    """-1 turns the cut-off off at vLLM, SGLang and llama.cpp."""
    return {"top_k": 0 if value == -1 and not isinstance(value, bool) else value}


def _seed(value: Any, _: Json) -> Json:
    """-1 is another seed for each request at vLLM and llama.cpp, as no seed is here."""
    return {} if value == -1 and not isinstance(value, bool) else {"seed": value}


def _repeat_penalty(value: Any, siblings: Json) -> Json:
    """llama.cpp and ollama look at the last 64 tokens, unless ``repeat_last_n`` says otherwise."""
    last = siblings.get("repeat_last_n")
    return {"repetition_penalty": value, "repeat_last_n": 64 if last is None else last}


def _use_beam_search(value: Any, siblings: Json) -> Json:
    """The beam search of vLLM has ``n`` beams, and goes on until no better answer is possible."""
    if not isinstance(value, bool):
        raise InvalidRequest("`use_beam_search` takes true or false.", "use_beam_search")
    if not value:
        return {}
    if siblings.get("do_sample") is True:
        raise InvalidRequest(
            "`use_beam_search` does not sample; leave out `do_sample`, or send `num_beams` to sample beams.",
            "do_sample",
        )
    names = ("num_beams", "best_of", "n", "num_return_sequences")
    # a number that is out of range is an error of its own field
    num_beams = next((siblings[name] for name in names if siblings.get(name) in range(1, MAX_BEAMS + 1)), 1)
    early_stopping = siblings.get("early_stopping")
    return {
        "num_beams": num_beams,
        "do_sample": False,
        "early_stopping": "never" if early_stopping is None else early_stopping,
    }


_ANY_OBJECT: Json = {"type": "object"}
# The forms of ``structured_outputs``, and what each is here.
_STRUCTURED_OUTPUTS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
# Its other fields, and the values with which they have no effect.
_STRUCTURED_OPTIONS = {"disable_fallback": (True, False), "disable_any_whitespace": (False,), "whitespace_pattern": ()}


def _response_format(value: Any, _: Json) -> Json:
    """OpenAI's; beside ``json_object`` llama.cpp takes a schema."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": _ANY_OBJECT if value.get("schema") is None else value["schema"]}
    if kind != "json_schema":
        raise InvalidRequest(
            "`response_format` must be an object whose `type` is text, json_object or json_schema.", "response_format"
        )
    named = value.get("json_schema")
    if not isinstance(named, dict) or named.get("schema") is None:
        raise InvalidRequest("`response_format` of type json_schema needs `json_schema.schema`.", "response_format")
    return {"json_schema": named["schema"]}


def _format_in(place: str) -> Callable[[Any, Json], Json]:
    """The format of an answer in OpenAI's responses and in Anthropic's API, where the schema stands beside the type."""

    def format_of(value: Any, _: Json) -> Json:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "text":
            return {}
        if kind == "json_object":
            return {"json_schema": _ANY_OBJECT}
        if kind != "json_schema":
            raise InvalidRequest(
                f"`{place}` must be an object whose `type` is text, json_object or json_schema.", place
            )
        if not isinstance(value.get("schema"), dict):
            raise InvalidRequest(f"`{place}` of type json_schema needs `schema`, a JSON schema.", place)
        return {"json_schema": value["schema"]}

    return format_of


def _structured_outputs(value: Any, _: Json) -> Json:
    """As vLLM (config/structured_outputs.py, StructuredOutputsParams at 002032ee)."""
    name = "structured_outputs"
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{name}` must be an object with one of {', '.join(_STRUCTURED_OUTPUTS)}.", name)
    found: dict[str, Any] = {}
    for key, of_key in value.items():
        if key in _STRUCTURED_OUTPUTS and of_key is not None:
            found[_STRUCTURED_OUTPUTS[key]] = of_key
        elif key == "json_object" and of_key is True:
            found["json_schema"] = _ANY_OBJECT
        elif key not in _STRUCTURED_OUTPUTS and of_key not in (None, False, *_STRUCTURED_OPTIONS.get(key, ())):
            raise InvalidRequest(f"`{name}.{key[:64]}` is not offered.", name)
    if len(found) + (value.get("json_object") is True and value.get("json") is not None) > 1:
        raise InvalidRequest(f"`{name}` takes one of {', '.join((*_STRUCTURED_OUTPUTS, 'json_object'))}.", name)
    return found


def _json_or_schema(value: Any, _: Json) -> Json:
    """The ``format`` of ollama: "json" or a schema; an empty text is its default."""
    if value == "":
        return {}
    return {"json_schema": _ANY_OBJECT if value == "json" else value}


def _unless_empty(parameter: str) -> Callable[[Any, Json], Json]:
    """llama.cpp and SGLang send an empty text for no grammar."""
    return lambda value, _: {} if value == "" else {parameter: value}


_OR_MINUS_ONE = {"type": "integer", "minimum": -1}
_SEED = {**_OR_MINUS_ONE, "exclusiveMaximum": 2**63}
_AT_LEAST_ONE = {"type": "integer", "minimum": 1}
_LENGTH = {"anyOf": [_AT_LEAST_ONE, {"type": "integer", "const": NO_LIMIT}]}
_PREDICT = {"anyOf": [_AT_LEAST_ONE, {"type": "integer", "enum": [-2, NO_LIMIT]}]}
_BIASES = {"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 1024}

OTHER_NAMES: Mapping[str, OtherName] = {
    "max_tokens": OtherName(
        "max_new_tokens", "KAITO, OpenAI", "-1 is no limit but the context, as in llama.cpp.", _LENGTH, _max_tokens
    ),
    "max_completion_tokens": OtherName("max_new_tokens", "OpenAI"),
    "max_output_tokens": OtherName("max_new_tokens", "OpenAI's responses"),
    "n_predict": OtherName(
        "max_new_tokens", "llama.cpp", "-1 and -2 are no limit but the context.", _PREDICT, _predict
    ),
    "num_predict": OtherName("max_new_tokens", "ollama", "-1 and -2 are no limit but the context.", _PREDICT, _predict),
    "num_ctx": OtherName(
        "max_length", "ollama", "A prompt that does not fit is refused and not cut. num_predict overrides it."
    ),
    "min_tokens": OtherName("min_new_tokens", "vLLM, SGLang"),
    "no_stop_trim": OtherName("include_stop_str_in_output", "SGLang"),
    "stop_sequences": OtherName("stop", "Anthropic"),
    "n": OtherName("num_return_sequences", "OpenAI"),
    "logit_bias": OtherName("sequence_bias", "OpenAI", "Token ids as text, and their biases.", _BIASES, _sequence_bias),
    "repeat_penalty": OtherName(
        "repetition_penalty", "llama.cpp, ollama", "repeat_last_n is then 64 by default.", None, _repeat_penalty
    ),
    "use_beam_search": OtherName(
        "num_beams",
        "vLLM",
        "true is beam search with n beams that stops when no better answer is possible.",
        {"type": "boolean"},
        _use_beam_search,
    ),
    "seed": OtherName("seed", "vLLM, llama.cpp", "-1 is another seed for each request.", _SEED, _seed),
    "response_format": OtherName(
        "json_schema",
        "OpenAI",
        "An object whose type is text, json_object, or json_schema with json_schema.schema. strict is always true.",
        {"type": "object"},
        _response_format,
    ),
    "structured_outputs": OtherName(
        "json_schema",
        "vLLM",
        "An object with one of json, regex, choice, grammar and json_object: json_schema, regex, choice or grammar.",
        {"type": "object"},
        _structured_outputs,
    ),
    "guided_json": OtherName("json_schema", "vLLM"),
    "guided_regex": OtherName("regex", "vLLM"),
    "guided_choice": OtherName("choice", "vLLM"),
    "guided_grammar": OtherName("grammar", "vLLM"),
    "ebnf": OtherName("grammar", "SGLang", "An empty text is none.", {"type": "string"}, _unless_empty("grammar")),
    "format": OtherName(
        "json_schema",
        "ollama",
        '"json" is any JSON object; an empty text is none.',
        {"anyOf": [{"type": "object"}, {"type": "string"}]},
        _json_or_schema,
    ),
    "regex": OtherName("regex", "SGLang", "An empty text is none.", {"type": "string"}, _unless_empty("regex")),
    "grammar": OtherName(
        "grammar", "llama.cpp", "An empty text is none.", {"type": "string"}, _unless_empty("grammar")
    ),
    "top_k": OtherName("top_k", "vLLM, SGLang", "-1 is off, as 0 is.", _OR_MINUS_ONE, _top_k),
}

# A field of an object that sets a parameter, if the schema of the API has the object.
NESTED_NAMES: Mapping[tuple[str, ...], OtherName] = {
    ("text", "format"): OtherName("json_schema", "OpenAI's responses", parameters=_format_in("text.format")),
    ("output_config", "format"): OtherName("json_schema", "Anthropic", parameters=_format_in("output_config.format")),
}
