"""Structured output by brute force: each token of the vocabulary is tried, byte by byte.

The definition that the masks are held to: a token is allowed if the text of the answer, with it, is the start of a text
that the grammar allows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.text.grammar import grammar_of
from phi3_serve.text.tokenizer import Phi3Tokenizer

_BYTES = LLTokenizer("byte")  # token ids 0 to 255 are the bytes


class BruteForce:
    """What may come next in the answers to one request."""

    def __init__(
        self, request: EngineRequest, tokenizer: Phi3Tokenizer, vocab_size: int, *, is_start_of_text: bool
    ) -> None:
        wanted = request.parameters.structured_output
        assert wanted is not None
        self._ends = frozenset(request.parameters.eos_token_ids)
        self._tokens = [b"" if i in tokenizer.control_ids else tokenizer.piece(i) for i in range(vocab_size)]
        self._drops_first_space = is_start_of_text
        self._start = LLMatcher(_BYTES, grammar_of(wanted), log_level=0, limits=LLParserLimits(verbose_errors=False))
        assert not self._start.is_error(), self._start.get_error()
        self._known: dict[tuple[int, ...], list[bool]] = {}

    def text(self, answer: Sequence[int]) -> bytes:
        """The bytes that a client gets."""
        text = b"".join(self._tokens[token] for token in answer)
        return text.removeprefix(b" ") if self._drops_first_space else text

    def allowed(self, answer: Sequence[int]) -> list[bool]:
        """For each token of the vocabulary whether it may follow ``answer``."""
        key = tuple(answer)
        if key not in self._known:
            self._known[key] = self._tried(key)
        return self._known[key]

    def allows(self, answer: Sequence[int]) -> bool:
        """Whether each token of ``answer`` may follow those before it."""
        return all(self.allowed(answer[:number])[token] for number, token in enumerate(answer))

    def must_end(self, answer: Sequence[int]) -> bool:
        """Whether only an end may follow ``answer``."""
        allowed = self.allowed(answer)
        return any(allowed) and not any(may and token not in self._ends for token, may in enumerate(allowed))

    def is_complete(self, text: bytes) -> bool:
        """Whether the grammar allows ``text``."""
        matcher = self._after(text)
        return matcher is not None and matcher.is_accepting()

    def _after(self, text: bytes) -> Any:
        matcher = self._start.deep_copy()
        return matcher if matcher.try_consume_tokens(list(text)) == len(text) else None

    def _tried(self, answer: tuple[int, ...]) -> list[bool]:
        if self._ends.intersection(answer) or (matcher := self._after(self.text(answer))) is None:
            return [False] * len(self._tokens)
        has_begun = len(self.text(answer))
        found = []
        for token, piece in enumerate(self._tokens):
            if token in self._ends:
                found.append(matcher.is_accepting())
                continue
            added = self.text((*answer, token))[has_begun:]
            found.append(bool(piece) and matcher.validate_tokens(list(added)) == len(added))
        return found


class BruteForceProcessor(LogitsProcessor):
    """For ``logits_processor`` of ``generate``."""

    def __init__(self, request: EngineRequest, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        ours = Phi3Tokenizer(tokenizer)
        is_start = not ours.before_answer(RawPrompt(""), request.prompt_ids)
        self.reference = BruteForce(request, ours, vocab_size, is_start_of_text=is_start)
        self.num_prompt_tokens = len(request.prompt_ids)
        self._max_new_tokens = request.max_length - len(request.prompt_ids)
        self._ends = frozenset(request.parameters.eos_token_ids)
        self._is_beam_search = request.parameters.is_beam_search

    def has_answered(self, token_ids: Sequence[int]) -> bool:
        """Whether ``token_ids`` are allowed, and have an end or the maximum length."""
        is_over = bool(self._ends.intersection(token_ids[-1:])) or len(token_ids) == self._max_new_tokens
        return is_over and self.reference.allows(token_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Rule out what is not allowed. Rows that have ended are padded, whatever their scores."""
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, self.num_prompt_tokens :].tolist()):
            if self._is_beam_search or not self._ends.intersection(ids):
                scores[row, ~torch.tensor(self.reference.allowed(ids))] = -torch.inf
        return scores


class UnlessComplete(LogitsProcessor):
    """A minimum length of ``generate``, which rules no end out where the grammar leaves nothing else."""

    def __init__(self, minimum: LogitsProcessor, structured: BruteForceProcessor) -> None:
        self._minimum = minimum
        self._structured = structured

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Rule the ends out."""
        processed: Tensor = self._minimum(input_ids, scores).clone()
        for row, ids in enumerate(input_ids[:, self._structured.num_prompt_tokens :].tolist()):
            if self._structured.reference.must_end(ids):
                processed[row] = scores[row]
        return processed
