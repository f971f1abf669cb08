"""The numbers of tokens of an answer."""

from collections.abc import Sequence

from phi3_serve.core.event import Done
from phi3_serve.core.usage import Usage


def usage_of(done: Sequence[Done], n: int, *, has_answer: bool = True) -> dict[str, int]:
    """The numbers of tokens of all requests together; ``n``: answers to each prompt. Each prompt counts once."""
    is_beam_search = any(len(d.completions) > 1 for d in done)  # then one request gives all answers to its prompt
    requests_per_prompt = 1 if is_beam_search else n
    prompt = sum(d.usage.prompt_tokens for d in done[::requests_per_prompt])
    return usage_json(Usage(prompt, sum(d.usage.completion_tokens for d in done) if has_answer else 0))


def usage_json(usage: Usage) -> dict[str, int]:
    """``usage`` as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
