"""The plain data that travels between the stages of a request, and the protocols ``Engine`` and ``Backend``.

Everything here is plain data, pickled between the ingress and the replicas.
"""

import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from phi3_serve.engine_statistics import EngineStatistics
from phi3_serve.errors import Phi3ServeError
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters
from phi3_serve.pickled_by_name import pickled_by_name
from phi3_serve.resolved_parameters import ResolvedParameters
from phi3_serve.tool_calls import ToolCalls

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
# How a variant stands: it answers; its replica is starting; nothing runs until a request asks for it;
# no node can hold it; it tried to start and cannot.
State = Literal["ready", "loading", "scaled_to_zero", "unplaceable", "failed"]

# Maximum sequences in one step of an engine. With more, throughput hardly grows on a CPU, and first tokens come later.
MAX_ROWS: Mapping[Literal["cpu", "cuda"], int] = {"cpu": 128, "cuda": 256}


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Nothing in it becomes a control token, also if it spells one."""

    role: Role
    content: str
    name: str | None = None  # of the author
    reasoning_content: str | None = None  # what an assistant thought before it answered


@pickled_by_name
@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt as the caller wrote it. Names of control tokens in it become control tokens."""

    text: str
    prefix: str = ""
    add_special_tokens: bool = True  # those that the tokenizer puts before every text, if it does


@pickled_by_name
@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, used without change."""

    token_ids: tuple[int, ...]


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, which the replica renders with the chat template of its checkpoint."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True  # end with what begins an answer of the assistant
    continue_final_message: bool = False  # end within the last message, which the answer continues
    add_special_tokens: bool = False  # those of RawPrompt, besides what the template writes
    tools_text: str = ""  # the part of the system message that offers tools, for errors


Prompt = RawPrompt | TokenPrompt | Conversation


MAX_ADAPTERS = 8  # of one request
MAX_ADAPTER_STRENGTH = 10.0


@pickled_by_name
@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter (LoRA) that a request names."""

    name: str
    strength: float | None = None  # multiplies the change that the adapter makes; None: the strength of the config
    field: str = "adapters"  # of the client's body that has the name, for errors


@dataclass(frozen=True, slots=True)
class OfferedAdapter:
    """An adapter that requests may name."""

    name: str
    source: str  # directory or Hub repository id
    strength: float  # of a request that gives none
    revision: str | None = None  # of a Hub repository


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


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizationRequest:
    """A text that becomes token ids, or token ids that become text. Nothing is generated."""

    model: str
    prompt: Prompt
    adapters: tuple[AdapterChoice, ...] = ()  # they do not change the tokens, but must exist
    finds_control_tokens: bool = True  # whether names of control tokens in a raw prompt become control tokens
    with_tokens: bool = False  # whether the result has ``tokens``
    wait_s: float = 0.0  # maximum, for a model that is asleep or loading


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


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and tokens generated."""

    prompt_tokens: int
    completion_tokens: int


@pickled_by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long a request took in its engine, in seconds."""

    queue_s: float  # from its arrival to the step that began it
    prompt_s: float  # from there until its first token was chosen
    answer_s: float  # from there until its last token was chosen


@pickled_by_name
@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities under the model's own scores, before any parameter changes them."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...]  # (token id, log-probability), the most likely first
    rank: int | None = None  # of the token among all tokens, from 1; only of a token of a prompt


@pickled_by_name
@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """One generated sequence: the new token ids and, for each of them, scores and log-probabilities if requested.

    ``scores`` are log-probabilities after all parameters are applied, ``logprobs`` those before.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    scores: tuple[float, ...] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None


@pickled_by_name
@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token that could stand at a place."""

    token_id: int
    piece: bytes
    logprob: float


@pickled_by_name
@dataclass(frozen=True, slots=True)
class TextToken:
    """A token of a text."""

    token_id: int
    piece: bytes  # what the text has of it; a control token has its name, an unknown id nothing
    offset: int  # characters of the text before it
    in_text: bool = True  # False: it leaves no trace in the text, or lies behind a stop string
    logprob: float | None = None  # if requested; the first token of a prompt has none
    likeliest: tuple[LikelyToken, ...] = ()  # the most likely first
    rank: int | None = None  # see ``TokenLogprobs``


@pickled_by_name
@dataclass(frozen=True, slots=True)
class PromptText:
    """The prompt as the model has read it: its text, with control tokens by their names, and its tokens."""

    text: str
    tokens: tuple[TextToken, ...]


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Completion:
    """One generated sequence as text."""

    text: str
    sequence: GeneratedSequence
    tokens: tuple[TextToken, ...] = ()  # if requested, all of the sequence
    stop_string: str | None = None  # the string of ``stop`` that ended the text


# Seconds. A request without news repeats its state this often, so that the ingress notices the loss of a whole node.
SIGN_OF_LIFE_INTERVAL_S = 10.0


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits in its replica, and nothing of it has run. A request that begins soon has no such event.

    While it waits, the event is repeated as a sign of life.
    """


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Begun:
    """The request runs. It is the first event of this kind after Queued; later ones are signs of life."""


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a streamed answer. All but the text only if requested."""

    text: str
    tokens: tuple[TextToken, ...] = ()  # of this piece
    prompt: PromptText | None = None  # in the first piece
    usage: Usage | None = None  # up to this piece


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer; always the last event."""

    completions: tuple[Completion, ...]
    usage: Usage
    warnings: tuple[str, ...] = ()  # parameters that could not have their effect
    prompt: PromptText | None = None  # if requested
    timings: Timings | None = None


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error; always the last event."""

    error: Phi3ServeError
    timings: Timings | None = None  # if the engine had begun it


Event = Queued | Begun | Delta | Done | Failed


class Constraint(Protocol):
    """What the rest of one sequence may be, for example JSON of a schema.

    Threads may share a constraint, but only one at a time may use it. An end-of-sequence token is allowed where the
    sequence is complete. After an end, or after a token that is not allowed, nothing is allowed.
    """

    def mask(self) -> bytes:
        """Which tokens may come next: one bit for each token id, the lowest bit of the first byte for id 0.

        The call releases Python's lock.

        Raises:
            InvalidRequest: what may come next is too complex to be computed.
        """

    def advance(self, token: int) -> bool:
        """Go on after ``token``. Returns whether it was allowed."""

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` may come next, one after another; may be less than possible."""

    def fork(self) -> "Constraint":
        """A constraint in the same state that goes on separately."""

    @property
    def is_finished(self) -> bool:
        """Whether the sequence is complete, and only an end may come next."""


class Adapter(Protocol):
    """An adapter that an engine has loaded. Whoever holds it keeps its memory; a new version is another object."""

    @property
    def name(self) -> str:
        """By which requests choose it."""

    @property
    def number(self) -> int:
        """Of this object. No other one that the process loads ever has it; caches know an adapter by it."""

    @property
    def num_bytes(self) -> int:
        """What it takes in the main memory."""


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter of a request, and the strength that multiplies the change that it makes."""

    adapter: Adapter
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCounts:
    """What a replica has done with adapters since its start."""

    num_in_memory: int = 0
    bytes_in_memory: int = 0
    num_loads: int = 0  # that have succeeded
    load_s: float = 0.0  # seconds of these loads together, downloads included
    num_evictions: int = 0
    num_failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request as engines take it: token ids and resolved parameters. ``prepare.prepare`` makes it."""

    request_id: str
    prompt_ids: tuple[int, ...]
    parameters: ResolvedParameters
    min_length: int  # tokens of prompt and answer together; may be above max_length, which wins
    max_length: int  # tokens of prompt and answer together
    fills_context: bool = False  # max_length is the whole context; an engine may reduce it to what its cache holds
    stream: bool
    deadline: float  # time.monotonic() seconds; a request that is not finished by then fails
    begin_by: float = math.inf  # time.monotonic() seconds; a request that is not started by then is refused
    constraint: Constraint | None = None  # of ``parameters.structured_output``; an engine advances forks of it
    adapters: tuple[AppliedAdapter, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request runs from the next step on; only after ``Engine.announce_start``."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The log-probabilities of all tokens of the prompt but the first; only with ``prompt_logprobs``.

    It comes once, before the first token of the answer. A prompt of one token has none.
    """

    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The next token ids of a streamed sequence, and their log-probabilities if requested."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequences of a request, best first; always the last engine event."""

    sequences: tuple[GeneratedSequence, ...]
    timings: Timings | None = None


EngineEvent = Started | ScoredPrompt | NewTokens | Finished | Failed


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of an engine's queue."""

    requests: int = 64
    tokens: int = 2**18  # of all waiting prompts together; the first waiting request may exceed this


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in an engine, and blocks of its key-value cache."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_blocks_used: int
    num_preempted: int = 0  # of the waiting requests, those that have run before


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine runs on. It does not change while the engine lives."""

    device: str  # the name of the GPU or of the processor
    compute_capability: str | None  # of a GPU of NVIDIA, for example 9.0
    dtype: str  # that it computes in
    quantization: str  # of the weights: none, int8, int4 or fp8
    kv_cache_dtype: str  # that keys and values are stored in: int8, fp8, or the dtype
    kernels: str  # the implementation, for example cuda
    replaced_kernels: Mapping[str, str]  # those that slower ones replace, and the reasons
    cache_tokens: int  # that the key-value cache holds
    cache_bytes: int  # of the key-value cache
    weight_bytes: int
    weight_format: str  # how the checkpoint stores the weights, in words; empty if they are of no checkpoint


class Engine(Protocol):
    """Token ids in, token ids out, without text, HTTP or Ray.

    Every method but ``load_adapter`` and ``close`` returns at once.
    """

    queue: QueueLimits
    """May be replaced at any time."""

    @property
    def info(self) -> EngineInfo:
        """What the engine runs on."""

    @property
    def load(self) -> Load:
        """The current load."""

    @property
    def statistics(self) -> EngineStatistics:
        """What the engine has counted since its start; it goes on counting."""

    def submit(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> None:
        """Queue ``request``. The engine's thread calls ``on_event`` with each event.

        The call takes milliseconds with a prompt of 100,000 tokens. It may come from any thread.

        Raises:
            InvalidRequest: a token id is not in the model's vocabulary, or the key-value cache is too small.
            Overloaded: the queue is full.
            EngineFailure: the engine is dead.
        """

    def announce_start(self, request_id: str) -> bool:
        """Whether the request still waits. If so, its event ``Started`` will come before the step that begins it."""

    def abort(self, request_id: str) -> None:
        """Stop the request within one step. No event follows. Unknown ids are ignored."""

    def load_adapter(self, name: str, directory: str) -> Adapter:
        """Read the LoRA adapter in ``directory``, as PEFT saves it, for requests that name it in ``adapters``.

        The call reads a file and may come from any thread. Steps go on meanwhile. The engine itself keeps no adapter.

        Raises:
            CheckpointError: the adapter cannot be read, or the engine cannot compute it exactly. The message is one
                line that names the file.
        """

    def check_health(self) -> None:
        """Raise EngineFailure if the thread is dead or has been in one step for too long."""

    def close(self) -> None:
        """Fail all requests and wait until the thread ends."""


@dataclass(frozen=True, slots=True)
class VariantState:
    """The state of one variant; ``detail`` gives the reason in words."""

    state: State
    detail: str = ""
    retry_after_s: float | None = None
    num_replicas: int = 0  # replicas that answer
    engine: EngineInfo | None = None  # of the replica that started last, if it is known
    num_tries: int = 0  # to load the model, that have failed
    next_try_s: float | None = None  # seconds until the next try
    adapters: tuple[OfferedAdapter, ...] | None = None  # None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInfo:
    """One GPU. Load, temperature, power and energy are None where the driver does not report them."""

    id: str
    name: str
    load_percent: float | None
    temperature_celsius: float | None
    memory_used_bytes: int
    memory_total_bytes: int
    power_watts: float | None = None
    energy_joules: float | None = None  # since the driver was loaded

    @property
    def load(self) -> float | None:
        """The load from 0 to 1."""
        return None if self.load_percent is None else self.load_percent / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The CPU and the main memory of one node. Core counts are None where the system does not report them."""

    load_percent: float
    num_physical_cores: int | None
    num_logical_cores: int | None
    memory_used_bytes: int
    memory_total_bytes: int


@dataclass(frozen=True, slots=True)
class HostInfo:
    """The hardware that the models run on: the GPUs of running replicas, or a CPU without GPUs."""

    gpus: tuple[GpuInfo, ...] = ()
    cpu: CpuInfo | None = None


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How busy the replicas of one model are."""

    num_places: int  # answers that they compute at once; 0 if no replica runs
    num_requests: int  # that this process has with them, running or waiting


class Backend(Protocol):
    """What the API needs from the part that serves the models."""

    def capacity(self) -> int:
        """The number of requests that can run or wait in all models together."""

    def occupancy(self, model: str) -> Occupancy:
        """How busy the replicas of ``model`` are."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Done, None]:
        """Run ``request``; Phi3ServeError before or between events."""

    async def tokenize(self, request: TokenizationRequest) -> Tokenization:
        """Use the tokenizer of a model; Phi3ServeError if it cannot be used, or not for this request."""

    async def states(self) -> Mapping[str, VariantState]:
        """The state of every declared variant. The call starts no replica."""

    async def host_info(self) -> HostInfo:
        """The hardware of the running replicas, or of the ingress if no replica has a GPU."""
