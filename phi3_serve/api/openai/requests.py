"""OpenAI's request bodies as ``GenerationRequest``."""

from collections.abc import Sequence
from dataclasses import replace

from phi3_serve.api.adapters import NamedModel
from phi3_serve.api.chat_messages import conversation
from phi3_serve.api.decoding_mode import SAMPLED, with_decoding_mode
from phi3_serve.api.openai.schema import (
    MAX_ANSWERS,
    ChatCompletionRequest,
    CompletionRequest,
    RequestBody,
)
from phi3_serve.api.openai.shown import shown_of, streamed_usage
from phi3_serve.api.other_names import NO_LIMIT, WHOLE_CONTEXT, sequence_bias
from phi3_serve.api.tools.offer import Offer
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Prompt, RawPrompt, TokenPrompt
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters

_OF_COMPLETIONS = replace(SAMPLED, max_new_tokens=16)  # OpenAI's default of max_tokens for /v1/completions
_NUM_SEEDS = 2**63


def chat_requests(
    body: ChatCompletionRequest, offer: Offer | None, *, model: NamedModel, request_id: str, options: RequestOptions
) -> list[GenerationRequest]:
    """One request for each answer that is generated on its own. ``offer``: the tools that ``body`` offers.

    Raises:
        InvalidRequest: fields contradict each other.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidRequest(
            "`continue_final_message` and `add_generation_prompt` cannot both be true.", "continue_final_message"
        )
    parameters = _parameters(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    prompt = replace(
        conversation(body.messages, offer),
        add_generation_prompt=body.ends_with_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
    )
    requests = _requests(body, [prompt], parameters, model=model, request_id=request_id, options=options)
    return [replace(request, tool_calls=None if offer is None else offer.calls) for request in requests]


def completion_requests(
    body: CompletionRequest, *, model: NamedModel, request_id: str, options: RequestOptions
) -> list[GenerationRequest]:
    """One request for each answer that is generated on its own, prompt by prompt.

    Raises:
        InvalidRequest: fields contradict each other, or a prompt is empty.
    """
    shown = shown_of(body)
    if not shown.answer and not (shown.prompt or shown.prompt_logprobs):
        raise InvalidRequest(
            "`max_tokens` is 0; without `echo` and `prompt_logprobs` it must be greater than or equal to 1, or -1.",
            "max_tokens",
        )
    if (num_answers := len(body.prompts) * body.num_candidates) > MAX_ANSWERS:
        name = "n" if body.best_of is None else "best_of"
        raise InvalidRequest(
            f"`prompt` has {len(body.prompts)} prompts and `{name}` is {body.num_candidates}, which makes "
            f"{num_answers} answers; one call may ask for at most {MAX_ANSWERS}.",
            name,
        )
    max_tokens = 1 if body.max_tokens == 0 else body.max_tokens  # one is left out
    parameters = _parameters(body, max_tokens=max_tokens, top_logprobs=body.logprobs)
    requests = _requests(body, _prompts(body), parameters, model=model, request_id=request_id, options=options)
    return [replace(request, api_defaults=_OF_COMPLETIONS) for request in requests]


def _prompts(body: CompletionRequest) -> list[RawPrompt | TokenPrompt]:
    prompts: list[RawPrompt | TokenPrompt] = []
    for number, prompt in enumerate(body.prompts, 1):
        if not prompt:
            raise InvalidRequest(f"Prompt {number} is empty; there is nothing to continue.", "prompt")
        if isinstance(prompt, str):
            prompts.append(RawPrompt(prompt, add_special_tokens=body.add_special_tokens is not False))
        else:
            prompts.append(TokenPrompt(tuple(prompt)))
    return prompts


def _parameters(body: RequestBody, *, max_tokens: int | None, top_logprobs: int | None) -> GenerationParameters:
    """The fields of the body and of generate_kwargs. ``max_tokens``: -1 is no limit but the context."""
    given = body.parameters
    _check_best_of(body)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("`stream_options` needs `stream` to be true.", "stream_options")
    if body.stream and shown_of(body).prompt_logprobs:
        raise InvalidRequest(
            "`prompt_logprobs` is not offered with `stream`; `echo` with `logprobs` is, for a completion.",
            "prompt_logprobs",
        )
    is_default = getattr(body, "max_completion_tokens", None) is None and body.max_tokens is None
    has_length = given.max_new_tokens is not None or (given.max_length is not None and is_default)
    of_fields = GenerationParameters(
        max_new_tokens=None if has_length or max_tokens == NO_LIMIT else max_tokens,
        max_length=WHOLE_CONTEXT if max_tokens == NO_LIMIT else None,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=None if body.seed in (None, -1) else body.seed % _NUM_SEEDS,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        sequence_bias=sequence_bias(body.logit_bias or {}) or None,
        stop=body.stop,
        top_logprobs=0 if top_logprobs is None and body.picks_best else top_logprobs,
    )
    return with_decoding_mode(given.over(of_fields))


def _check_best_of(body: RequestBody) -> None:
    if body.best_of is None:
        return
    if body.best_of < body.num_answers:
        raise InvalidRequest(
            f"`best_of` is {body.best_of}, but must be at least the number of answers, {body.num_answers}.", "best_of"
        )
    if body.best_of > 1 and body.stream:
        raise InvalidRequest("`best_of` is not offered with `stream`: the best answer is known at the end.", "best_of")


def _requests(
    body: RequestBody,
    prompts: Sequence[Prompt],
    parameters: GenerationParameters,
    *,
    model: NamedModel,
    request_id: str,
    options: RequestOptions,
) -> list[GenerationRequest]:
    each_answer, shown = _parameters_of_each_answer(parameters, body.num_candidates), shown_of(body)
    adapters = model.adapters(body.adapters)
    return [
        GenerationRequest(
            request_id=f"{request_id}-{number}",
            model=model.model,
            adapters=adapters,
            prompt=prompt,
            parameters=of_answer,
            api_defaults=SAMPLED,
            stream=bool(body.stream),
            shows_prompt=shown.needs_prompt,
            shows_tokens=shown.needs_tokens,
            shows_usage=streamed_usage(body) == "in_each_chunk",
            options=options,
        )
        for number, (prompt, of_answer) in enumerate((p, a) for p in prompts for a in each_answer)
    ]


def _parameters_of_each_answer(parameters: GenerationParameters, n: int) -> list[GenerationParameters]:
    """One beam search gives its ``n`` best sequences. Sampled answers are ``n`` requests, so that each is streamed."""
    if parameters.asks_for_beams:
        return [parameters.over(GenerationParameters(num_return_sequences=n))]
    parameters, seed = replace(parameters, num_return_sequences=None), parameters.seed
    seeds = [GenerationParameters(seed=None if seed is None else (seed + i) % _NUM_SEEDS) for i in range(n)]
    return [of_answer.over(parameters) for of_answer in seeds]
