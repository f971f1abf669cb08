"""What an answer shows beside its text, as the request asks."""

from dataclasses import dataclass
from typing import Literal

from phi3_serve.api.openai.schema import ChatCompletionRequest, CompletionRequest, RequestBody
from phi3_serve.parameters import NONE_GIVEN

StreamedUsage = Literal["none", "at_end", "in_each_chunk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What an answer shows beside its text."""

    logprobs: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False  # in log-probabilities `token_id:5` in place of a token's text
    prompt_logprobs: bool = False
    prompt: bool = False  # before the answer
    answer: bool = True  # False: the prompt alone

    @property
    def needs_tokens(self) -> bool:
        """Whether the tokens of the answer are needed."""
        return self.logprobs or self.token_ids

    @property
    def needs_prompt(self) -> bool:
        """Whether the text or the tokens of the prompt are needed."""
        return self.prompt or self.prompt_logprobs or self.token_ids


def shown_of(body: RequestBody) -> Shown:
    """What the answer to ``body`` shows. A chat echoes a message, which is no prompt."""
    completion = body if isinstance(body, CompletionRequest) else None
    return Shown(
        logprobs=body.wants_logprobs,
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        prompt_logprobs=(body.generate_kwargs or NONE_GIVEN).prompt_logprobs is not None,
        prompt=completion is not None and bool(completion.echo),
        answer=completion is None or completion.max_tokens != 0,
    )


def streamed_usage(body: RequestBody) -> StreamedUsage:
    """Which chunks of a stream have the usage. As in vLLM, that of each chunk implies that of the whole."""
    options = body.stream_options
    if options is None or options.include_usage is False:
        return "none"
    if options.continuous_usage_stats:
        return "in_each_chunk"
    return "at_end" if options.include_usage else "none"


def echoed_message(body: ChatCompletionRequest) -> str:
    """What a chat with ``echo`` begins with: the last message, if it has the role of the answer (vLLM)."""
    last = body.messages[-1]
    return last.text if body.echo and last.role == body.answer_role else ""
