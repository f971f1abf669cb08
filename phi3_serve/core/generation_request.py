"""A request for an answer, from the ingress to a replica."""

from dataclasses import dataclass, replace

from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.core.prompt import Prompt
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters
from phi3_serve.pickled_by_name import pickled_by_name
from phi3_serve.tool_calls import ToolCalls


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Options of the service that do not change the answer, for all wire formats. Times in seconds."""

    session: str | None = None  # an id that all requests of a conversation share
    wait_s: float = 0.0  # maximum, for a model that is asleep or loading
    queue_timeout_s: float | None = None  # maximum, from arrival in the replica to the start
    timeout_s: float  # maximum, from arrival in the replica to the last token

    def after(self, seconds: float) -> "RequestOptions":
        """What is left when the request has been in the replica for ``seconds``."""
        queue_timeout_s = None if self.queue_timeout_s is None else max(0.0, self.queue_timeout_s - seconds)
        return replace(self, queue_timeout_s=queue_timeout_s, timeout_s=max(0.0, self.timeout_s - seconds))


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request from the ingress to a replica.

    ``api_defaults`` are what the API gives where neither the client nor the operator says anything.
    """

    request_id: str
    model: str
    prompt: Prompt
    parameters: GenerationParameters
    api_defaults: GenerationParameters = NONE_GIVEN
    tool_calls: ToolCalls | None = None  # those that the answer is, or may be
    adapters: tuple[AdapterChoice, ...] = ()  # each name once; their changes add up
    stream: bool = False
    clean_up_tokenization_spaces: bool = False
    truncate_prompt: bool = False  # handle_long_generation "hole": drop the start of a prompt that is too long
    shows_prompt: bool = False  # the answer has the prompt's text and tokens; prompt_logprobs implies it
    shows_tokens: bool = False  # the answer has its tokens and their places in the text, in a stream with each piece
    shows_usage: bool = False  # each piece of a stream has the usage up to it
    options: RequestOptions
