"""A request for token ids or for their text, and its result."""

from dataclasses import dataclass

from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.core.generation_request import RequestOptions
from phi3_serve.core.prompt import Prompt
from phi3_serve.pickled_by_name import pickled_by_name


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizationRequest:
    """A text that becomes token ids, or token ids that become text. Nothing is generated."""

    model: str
    prompt: Prompt
    adapters: tuple[AdapterChoice, ...] = ()  # they do not change the tokens, but must exist
    finds_control_tokens: bool = True  # whether names of control tokens in a raw prompt become control tokens
    with_tokens: bool = False  # whether the result has ``tokens``
    options: RequestOptions


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Token:
    """One token of a vocabulary."""

    name: str  # by which the tokenizer knows it
    content: bytes  # what it adds within a text; a control token has its name


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenization:
    """A text and its token ids."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[Token, ...] = ()
    context_length: int  # tokens of prompt and answer that the model takes
