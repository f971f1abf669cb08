"""From resolved parameters and the token ids of a prompt to the request that an engine runs."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.errors import InvalidRequest, PromptTooLong
from phi3_serve.parameter_defaults import LIBRARY_DEFAULT_NEW_TOKENS
from phi3_serve.parameters import MAX_PROMPT_LOGPROBS
from phi3_serve.resolved_parameters import ResolvedParameters, check_token_ids


def prepare(
    request_id: str,
    prompt_ids: Sequence[int],
    parameters: ResolvedParameters,
    *,
    context_length: int,
    timeout_s: float,
    queue_timeout_s: float | None = None,
    num_prefix_tokens: int = 0,
    truncates_prompt: bool = False,
    stream: bool = False,
) -> EngineRequest:
    """The engine request, with its lengths in tokens and its deadlines counted from now.

    ``num_prefix_tokens`` of the prompt come from the request's ``prefix``. ``truncates_prompt`` drops the start of a
    prompt that leaves no space for the answer (``handle_long_generation`` "hole").

    Raises:
        InvalidRequest: the prompt is empty, or too long for the log-probabilities that are asked of it.
        PromptTooLong: no token of an answer fits after the prompt.
    """
    if parameters.truncate_prompt_tokens is not None:
        num_given = len(prompt_ids)
        prompt_ids = truncated(prompt_ids, parameters, context=context_length)
        if parameters.truncation_side == "left":
            num_prefix_tokens = max(0, num_prefix_tokens - (num_given - len(prompt_ids)))
    if not prompt_ids:
        raise InvalidRequest("The prompt holds no token.", "prompt")
    if truncates_prompt:
        prompt_ids = prompt_ids[-kept_by_hole(parameters, prompt=len(prompt_ids), context=context_length) :]
    total = lengths(parameters, prompt=len(prompt_ids), prefix=num_prefix_tokens, context=context_length)
    _check_prompt_logprobs(parameters, len(prompt_ids))
    now = time.monotonic()
    return EngineRequest(
        request_id=request_id,
        prompt_ids=tuple(prompt_ids),
        parameters=parameters,
        min_length=total.min_length,
        max_length=total.max_length,
        fills_context=total.max_length == context_length,
        stream=stream,
        deadline=now + timeout_s,
        begin_by=math.inf if queue_timeout_s is None else now + queue_timeout_s,
    )


def _check_prompt_logprobs(parameters: ResolvedParameters, prompt: int) -> None:
    of_token = 1 + (parameters.prompt_logprobs or 0)
    if parameters.prompt_logprobs is not None and prompt * of_token > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"`prompt_logprobs` is {parameters.prompt_logprobs}, which makes {prompt * of_token:,} log-probabilities "
            f"of a prompt of {prompt:,} tokens; the most is {MAX_PROMPT_LOGPROBS:,}.",
            "prompt_logprobs",
        )


def check_vocabulary(request: EngineRequest, vocab_size: int) -> None:
    """Raise InvalidRequest if prompt or parameters have a token id that the model's vocabulary does not have."""
    for extreme in (min(request.prompt_ids), max(request.prompt_ids)):
        if not 0 <= extreme < vocab_size:
            raise InvalidRequest(
                f"`prompt` holds token id {extreme}; this model's ids go from 0 to {vocab_size - 1}.", "prompt"
            )
    check_token_ids(request.parameters, vocab_size)


def warnings(request: EngineRequest) -> tuple[str, ...]:
    """What cannot have the effect that the caller expects. transformers warns of it, too, and answers."""
    parameters = request.parameters
    found = []
    if request.min_length > request.max_length:
        name = "min_length" if parameters.min_new_tokens is None else "min_new_tokens"
        found.append(
            f"`{name}` asks for at least {request.min_length} tokens of prompt and answer, but the most possible is "
            f"{request.max_length}; the answer ends there."
        )
    if parameters.structured_output is not None:
        kind = parameters.structured_output.kind
        found += [
            f"`{name}` has no effect with `{kind}`: the answer ends where it is complete."
            for name in parameters.without_effect
        ]
    if parameters.replaced_by_call is not None:
        found.append(
            f"`{parameters.replaced_by_call}` has no effect: it is for an answer in words, and a call is forced."
        )
    if not parameters.eos_token_ids and not parameters.ignored_eos_token_ids:
        found.append("`eos_token_id` is empty: no token ends the answer.")
    return tuple(found)


def truncated(prompt_ids: Sequence[int], parameters: ResolvedParameters, *, context: int) -> Sequence[int]:
    """The tokens of the prompt that ``truncate_prompt_tokens`` keeps, as in vLLM (renderers/params.py)."""
    num_kept = parameters.truncate_prompt_tokens
    if num_kept == -1:
        num_kept = max(0, context - (parameters.max_new_tokens or 1))
    if num_kept is None or num_kept >= len(prompt_ids):
        return prompt_ids
    return prompt_ids[len(prompt_ids) - num_kept :] if parameters.truncation_side == "left" else prompt_ids[:num_kept]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Minimum and maximum number of tokens of prompt and answer together."""

    min_length: int
    max_length: int


def lengths(parameters: ResolvedParameters, *, prompt: int, prefix: int, context: int) -> Lengths:
    """The total lengths that ``parameters`` ask for, with a prompt of ``prompt`` tokens.

    The ``prefix`` tokens of the prompt do not count for max_length and min_length (transformers 5.23,
    TextGenerationPipeline._forward). The maximum is limited to ``context``; the minimum may be above the maximum.

    Raises:
        PromptTooLong: no token of an answer fits after the prompt.
    """
    if prompt >= context:
        raise PromptTooLong(
            f"The prompt has {prompt} tokens, but this model's context holds {context}, answer included.",
            "prompt",
        )
    longest = _longest(parameters, prompt=prompt, prefix=prefix)
    if parameters.min_new_tokens is not None:
        shortest = prompt + parameters.min_new_tokens
    else:
        shortest = parameters.min_length + prefix if parameters.min_length else 0
    return Lengths(min_length=shortest, max_length=min(longest, context))


def _longest(parameters: ResolvedParameters, *, prompt: int, prefix: int) -> int:
    if parameters.max_new_tokens is not None:
        return prompt + parameters.max_new_tokens
    if parameters.max_length is None:
        return prompt + LIBRARY_DEFAULT_NEW_TOKENS
    longest = parameters.max_length + prefix
    if prompt >= longest:
        raise PromptTooLong(
            f"Input length of input_ids is {prompt}, but `max_length` is set to {parameters.max_length}. "
            "`max_length` counts prompt and answer together: increase it, or set `max_new_tokens`.",
            "max_length",
        )
    return longest


def kept_by_hole(parameters: ResolvedParameters, *, prompt: int, context: int) -> int:
    """How many tokens at the prompt's end ``handle_long_generation`` "hole" keeps.

    As in TextGenerationPipeline.preprocess of transformers 5.23, with its error texts.

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
