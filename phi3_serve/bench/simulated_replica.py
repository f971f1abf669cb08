"""A replica on a GPU in virtual time: rows, key-value cache, chunked prefill and a queue, at the speed of the roofline.

Between two events of a replica, which are the end of a prefill and of an answer, all rows get tokens at the same
rate. So the replica jumps from event to event. It does not preempt requests and shares no prefixes.
"""

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from phi3_serve.bench.gpus import SHARE_OF_BANDWIDTH, SHARE_OF_FLOPS, Gpu
from phi3_serve.catalogue import Variant
from phi3_serve.core.engine_info import MAX_ROWS, Load

CHUNK = 2048  # tokens of prompts in a step


@dataclass(frozen=True, slots=True)
class Speed:
    """What one replica can do."""

    weights_s: float  # seconds of reading the weights, in each step
    cached_token_s: float  # seconds of reading one token's keys and values, in each step
    prompt_token_s: float  # seconds of computing one token of a prompt
    cache_tokens: int
    max_rows: int = MAX_ROWS["cuda"]
    max_waiting: int = 64

    @classmethod
    def of(cls, gpu: Gpu, model: Variant) -> "Speed":
        """The speed of ``model`` on ``gpu``, with the shares of the maker's figures that were measured.

        Raises:
            ValueError: the weights do not fit.
        """
        if (tokens := gpu.cache_tokens(model)) <= 0:
            raise ValueError(f"{model.name} does not fit on {gpu.name}.")
        bandwidth, flops = SHARE_OF_BANDWIDTH * gpu.bandwidth, SHARE_OF_FLOPS * gpu.flops
        return cls(
            weights_s=model.weight_bytes() / bandwidth,
            cached_token_s=model.kv_bytes_per_token() / bandwidth,
            prompt_token_s=2 * model.num_parameters / flops,
            cache_tokens=tokens,
        )


@dataclass(slots=True)
class Request:
    """A request in a replica."""

    arrived: float  # seconds
    prompt_tokens: float  # that are not computed yet
    answer_tokens: int
    cached_tokens: float  # that it holds on average: its prompt and half of its answer


class SimulatedReplica:
    """The requests of one replica at ``now``."""

    def __init__(self, speed: Speed, now: float, waits: list[float]) -> None:
        """``waits``: gets the seconds to the first token of each request."""
        self._speed = speed
        self._now = now
        self._waits = waits
        self._waiting: deque[Request] = deque()
        self._prefilling: deque[Request] = deque()
        self._decoding: list[tuple[float, float]] = []  # a heap: the step in which each ends, the tokens it holds
        self._step = 0.0  # that all rows have reached; not whole, because time may stop within one
        self._held = 0.0  # tokens of the cache, of all rows
        self._read = 0.0  # tokens of the cache that a step reads: those of the rows that decode

    @property
    def num_requests(self) -> int:
        """Running and waiting."""
        return len(self._waiting) + len(self._prefilling) + len(self._decoding)

    @property
    def load(self) -> Load:
        """As an engine reports it, with one token in a block."""
        num_running = len(self._prefilling) + len(self._decoding)
        return Load(num_running, len(self._waiting), self._speed.cache_tokens, int(self._held))

    def add(self, request: Request) -> bool:
        """Take ``request`` at the time that ``advance`` has reached. False if the queue is full."""
        if len(self._waiting) >= self._speed.max_waiting:
            return False
        self._waiting.append(request)
        self._admit()
        return True

    def advance(self, until: float) -> None:
        """Let time pass."""
        speed = self._speed
        while self._prefilling or self._decoding:
            seconds = speed.weights_s + speed.cached_token_s * self._read
            head = self._prefilling[0] if self._prefilling else None
            steps = self._decoding[0][0] - self._step if self._decoding else float("inf")
            if head is not None:
                seconds += speed.prompt_token_s * CHUNK
                steps = min(steps, head.prompt_tokens / CHUNK)
            possible = (until - self._now) / seconds
            if possible < steps:
                self._pass(possible, until, head)
                return
            self._pass(steps, self._now + steps * seconds, head)
            self._end_events()
        self._now = until

    def _pass(self, steps: float, now: float, head: Request | None) -> None:
        self._step += steps
        self._now = now
        if head is not None:
            head.prompt_tokens -= steps * CHUNK

    def _end_events(self) -> None:
        """End what has reached its end: the prefill of the first request, answers."""
        tiny = 1e-6  # of a step, by rounding
        if self._prefilling and self._prefilling[0].prompt_tokens <= tiny * CHUNK:
            begun = self._prefilling.popleft()
            self._waits.append(self._now - begun.arrived)
            heappush(self._decoding, (self._step + begun.answer_tokens - 1, begun.cached_tokens))
            self._read += begun.cached_tokens
        while self._decoding and self._decoding[0][0] <= self._step + tiny:
            _, tokens = heappop(self._decoding)
            self._read -= tokens
            self._held -= tokens
        self._admit()

    def _admit(self) -> None:
        """Begin waiting requests, in their order, while rows and cache allow."""
        speed = self._speed
        while self._waiting and len(self._prefilling) + len(self._decoding) < speed.max_rows:
            # One that is larger than the cache runs alone here; the server refuses it.
            if self._held and self._held + self._waiting[0].cached_tokens > speed.cache_tokens:
                return
            begun = self._waiting.popleft()
            self._held += begun.cached_tokens
            self._prefilling.append(begun)
