"""Whether a request fits into the whole key-value cache. Plain Python, no tensors."""

from bisect import bisect_right
from dataclasses import replace

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.errors import InvalidRequest


class CacheCapacity:
    """What the key-value cache can hold of one request that runs alone."""

    def __init__(self, num_blocks: int, *, token_budget: int, window: int | None) -> None:
        """``token_budget``: tokens of one step. ``window``: how many keys a query sees, its own included; None: all."""
        self._num_blocks = num_blocks
        self._token_budget = token_budget
        self._window = window

    def fitted(self, request: EngineRequest) -> EngineRequest:
        """``request``. If it asks for the whole context, its maximum length becomes what the cache can hold.

        Raises:
            InvalidRequest: its sequences do not fit into the cache if all of them reach their maximum length.
        """
        if self._num_blocks_needed(request, request.max_length) <= self._num_blocks:
            return request
        lengths = range(len(request.prompt_ids) + 1, request.max_length)
        number = bisect_right(lengths, self._num_blocks, key=lambda length: self._num_blocks_needed(request, length))
        if not number:
            raise self._prompt_too_long(request)
        if not request.fills_context or lengths[number - 1] < request.min_length:
            raise self._answer_too_long(request, lengths[number - 1])
        return replace(request, max_length=lengths[number - 1])

    def _num_blocks_needed(self, request: EngineRequest, max_length: int) -> int:
        """Blocks in use if all sequences reach ``max_length`` and have nothing but their prompt in common."""
        parameters, prompt = request.parameters, len(request.prompt_ids)
        num_rows = parameters.num_sequences
        needed = _of_forks(num_rows, prompt, max_length)
        if parameters.is_guided:
            negative_prompt = len(parameters.negative_prompt_ids or (0,))
            needed += _of_forks(num_rows, negative_prompt, negative_prompt + max_length - prompt)
            num_rows *= 2
        if self._window is None:
            return needed
        of_windows = num_rows * (self._window // BLOCK_SIZE + 2) + -(-self._token_budget // BLOCK_SIZE)
        return min(needed, of_windows)

    def _prompt_too_long(self, request: EngineRequest) -> InvalidRequest:
        return InvalidRequest(
            f"The prompt has {len(request.prompt_ids)} tokens, and {_sequences(request)} do not fit into the "
            f"key-value cache, which holds {self._num_blocks * BLOCK_SIZE} tokens.",
            "prompt",
        )

    def _answer_too_long(self, request: EngineRequest, longest: int) -> InvalidRequest:
        prompt = len(request.prompt_ids)
        name, offset = ("max_length", 0) if request.parameters.max_new_tokens is None else ("max_new_tokens", prompt)
        return InvalidRequest(
            f"`{name}` is {request.max_length - offset}, but the key-value cache holds {self._num_blocks * BLOCK_SIZE} "
            f"tokens. With {_sequences(request)} after a prompt of {prompt} tokens, the most allowed is "
            f"{longest - offset}.",
            name,
        )


def _of_forks(num_rows: int, prompt: int, max_length: int) -> int:
    """Blocks of ``num_rows`` sequences that share the full blocks of their prompt. A last token is never cached."""
    shared = prompt // BLOCK_SIZE
    return shared + num_rows * max(0, -(-(max_length - 1) // BLOCK_SIZE) - shared)


def _sequences(request: EngineRequest) -> str:
    parameters = request.parameters
    kind = "beam" if parameters.is_beam_search else "sequence"
    guided = " with guidance" if parameters.is_guided else ""
    return f"{parameters.num_sequences} {kind}{'s' * (parameters.num_sequences > 1)}{guided}"
