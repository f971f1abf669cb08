"""``core.Constraint`` by llguidance: a grammar over the text of an answer, as the client gets it.

llguidance sees the bytes that each token adds to the text. The first token of an answer to a conversation can add
fewer: the decoders of Llama and Phi-3 drop the first space of a text.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence, Set
from functools import cached_property
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from phi3_serve.errors import InvalidRequest
from phi3_serve.resolved_parameters import StructuredKind, StructuredOutput
from phi3_serve.text.grammar import compile_error, grammar_of

MAX_KEPT = 16  # grammars that are compiled once for many requests
# Of one grammar; each state takes one or two kilobytes. llguidance's own limits bound the work of compiling (about
# 0.1 s) and of each mask (about 20 ms).
MAX_LEXER_STATES = 50_000


class Tokens(Protocol):
    """What llguidance needs of a tokenizer; ``Phi3Tokenizer`` has it."""

    @property
    def control_ids(self) -> Set[int]:
        """Tokens that are no part of a text."""

    @property
    def drops_first_space(self) -> bool:
        """Whether the first space of a text is dropped."""

    def piece(self, token_id: int, /) -> bytes:
        """The bytes of a token within a text; none if the tokenizer does not know it."""

    def encode_text(self, text: str, /) -> list[int]:
        """The token ids of ``text``."""


class _Vocabulary:
    """The bytes of all tokens of a model, as llguidance's ``TokenizerWrapper`` takes them."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokens, tokens: Sequence[bytes]) -> None:
        self._tokenizer = tokenizer
        # Two entries more than the model has. An end of llguidance's own, because each request has other ends. And a
        # space, because llguidance fails where no token is allowed: a first token may not add a space.
        self.tokens = [*tokens, b"<end>", b" "]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [*tokenizer.control_ids, self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        """The token ids of ``text``."""
        return self._tokenizer.encode_text(text)


class Grammars:
    """Compiles what answers must be, for one tokenizer. Threads may share it."""

    def __init__(self, tokenizer: Tokens, vocab_size: int) -> None:
        """``vocab_size``: that of the model, which may be larger than the tokenizer's."""
        self._tokenizer = tokenizer
        self._tokens = [tokenizer.piece(i) for i in range(vocab_size)]
        self._limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        self._compiled: OrderedDict[tuple[str, bool], LLMatcher] = OrderedDict()  # the latest used is last
        self._lock = threading.Lock()

    def constraint(
        self, wanted: StructuredOutput, *, ends: Sequence[int], is_start_of_text: bool
    ) -> "GrammarConstraint":
        """The constraint of an answer.

        Args:
            wanted: what its text must be.
            ends: the tokens that end it. They are no part of its text.
            is_start_of_text: whether no text comes before it, so that its first space may be dropped.

        Raises:
            InvalidRequest: llguidance cannot compile ``wanted``. The message names the place.
        """
        grammar = grammar_of(wanted)
        later = self._matcher(wanted, grammar, is_first=False)
        first = None
        if is_start_of_text and self._tokenizer.drops_first_space:
            first = self._matcher(wanted, grammar, is_first=True)
        return GrammarConstraint(self, wanted.kind, frozenset(ends), later, first)

    def _matcher(self, wanted: StructuredOutput, grammar: str, *, is_first: bool) -> LLMatcher:
        key = grammar, is_first
        with self._lock:
            if (kept := self._compiled.get(key)) is not None:
                self._compiled.move_to_end(key)
                return kept.deep_copy()
        tokenizer = self._of_first_token if is_first else self.of_later_tokens
        matcher = self._compile(tokenizer, grammar)
        if (problem := self._problem(matcher)) is not None:
            raise compile_error(wanted, problem, self._error_of)
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > MAX_KEPT:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def _compile(self, tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
        return LLMatcher(tokenizer, grammar, log_level=0, limits=self._limits)

    def _problem(self, matcher: LLMatcher) -> str | None:
        """Why the fresh ``matcher`` cannot be used; None if it can."""
        # an error if no text is allowed, or if its start is too complex
        mask = None if matcher.is_error() else matcher.compute_bitmask()
        if mask is None or matcher.is_error():
            return matcher.get_error()
        return "it allows the empty text only" if int.from_bytes(mask, "little") == 1 << self.end else None

    def _error_of(self, grammar: str) -> str | None:
        matcher = self._compile(self.of_later_tokens, grammar)
        return matcher.get_error() if matcher.is_error() else None

    @property
    def end(self) -> int:
        """The bit of a mask that says whether the text is complete."""
        return len(self._tokens)

    @cached_property
    def of_later_tokens(self) -> LLTokenizer:
        """The tokens as they are within a text."""
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, self._tokens)))

    @cached_property
    def _of_first_token(self) -> LLTokenizer:
        """The tokens as they are at the start of a text."""
        tokens = [token.removeprefix(b" ") for token in self._tokens]
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, tokens)))

    @cached_property
    def spaces(self) -> Sequence[int]:
        """The tokens that add nothing to a text at its start."""
        return [i for i, token in enumerate(self._tokens) if token == b" "]

    def without_first_space(self, token: int) -> list[int]:
        """Tokens with the text that ``token`` has at the start of a text."""
        if not self._tokens[token].startswith(b" "):
            return [token]
        return self.of_later_tokens.greedy_tokenize(self._tokens[token][1:].decode())


class GrammarConstraint:
    """``core.Constraint`` of one sequence."""

    def __init__(
        self,
        grammars: Grammars,
        kind: StructuredKind,
        ends: frozenset[int],
        later: LLMatcher,
        first: LLMatcher | None,
        *,
        is_over: bool = False,
    ) -> None:
        """``first`` is in the state of ``later``, and gives the mask of the first token; None after it."""
        self._grammars = grammars
        self._kind: StructuredKind = kind
        self._ends = ends
        self._later = later
        self._first = first
        self._is_over = is_over

    def mask(self) -> bytes:
        """See ``core.Constraint``."""
        if self._is_over:
            return bytes(self._grammars.end // 8 + 1)
        matcher = self._later if self._first is None else self._first
        bits = bytearray(matcher.compute_bitmask())
        if matcher.is_error():
            raise InvalidRequest(f"`{self._kind}` is too complex: {matcher.get_error()[:1000]}", self._kind)
        is_complete = _get(bits, self._grammars.end)
        for token in self._grammars.spaces if self._first is not None else ():
            _set(bits, token, True)
        for token in (*self._ends, self._grammars.end):
            _set(bits, token, is_complete and token in self._ends)
        return bytes(bits)

    def advance(self, token: int) -> bool:
        """See ``core.Constraint``."""
        if self._is_over:
            return False
        if token in self._ends:
            self._is_over = True
            return self._later.is_accepting()
        tokens = [token] if self._first is None else self._grammars.without_first_space(token)
        self._first = None
        self._is_over = self._later.try_consume_tokens(tokens) < len(tokens)
        return not self._is_over

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """See ``core.Constraint``."""
        if self._is_over or self._first is not None:
            return 0
        before_end = next((number for number, token in enumerate(tokens) if token in self._ends), len(tokens))
        return self._later.validate_tokens(list(tokens[:before_end]))

    def fork(self) -> "GrammarConstraint":
        """See ``core.Constraint``."""
        first = None if self._first is None else self._first.deep_copy()
        return GrammarConstraint(
            self._grammars, self._kind, self._ends, self._later.deep_copy(), first, is_over=self._is_over
        )

    @property
    def is_finished(self) -> bool:
        """See ``core.Constraint``."""
        return self._first is None and not self._is_over and self._later.is_stopped() and self._later.is_accepting()


def _get(bits: bytearray, token: int) -> bool:
    return bool(bits[token >> 3] >> (token & 7) & 1)


def _set(bits: bytearray, token: int, value: bool) -> None:
    bits[token >> 3] = bits[token >> 3] & ~(1 << (token & 7)) | value << (token & 7)
