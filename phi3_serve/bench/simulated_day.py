"""A day of requests to one model whose replicas come and go, in virtual time."""

import random
from dataclasses import dataclass, field

from phi3_serve.bench.arrivals import Arrivals
from phi3_serve.bench.simulated_controller import SimulatedController
from phi3_serve.bench.simulated_replica import Request, SimulatedReplica, Speed

TICK = 1.0  # seconds between two decisions
SHOWN_EVERY = 300.0  # seconds between two points of the plots


@dataclass(frozen=True, slots=True)
class Nodes:
    """How long a replica takes to start, and how long an idle node stays."""

    load_s: float = 60.0  # seconds until a replica on a running node has its weights
    start_s: float = 240.0  # seconds until a new node runs
    idle_s: float = 300.0  # seconds until an idle node ends: idleTimeoutSeconds of k8s/base
    num_kept: int = 0  # nodes that never end


@dataclass(slots=True)
class Day:
    """What happened."""

    waits: list[float] = field(default_factory=list)  # seconds to the first token of each request that began
    num_refused: int = 0  # the queue was full
    num_asleep: int = 0  # no replica ran; the client was told how long
    replica_seconds: float = 0.0
    node_seconds: float = 0.0
    replicas: list[int] = field(default_factory=list)  # running, each SHOWN_EVERY seconds
    arrived: list[int] = field(default_factory=list)  # requests in the SHOWN_EVERY seconds before


@dataclass(slots=True, eq=False)
class _Started:
    """A replica that runs, or that will."""

    number: int
    ready_at: float
    replica: SimulatedReplica | None = None
    is_draining: bool = False  # it answers what it has


class SimulatedDay:
    """Replays arrivals against replicas whose number ``controller`` decides."""

    def __init__(
        self, arrivals: Arrivals, speed: Speed, controller: SimulatedController, nodes: Nodes, seed: int = 0
    ) -> None:
        self._arrivals = arrivals
        self._speed = speed
        self._controller = controller
        self._nodes = nodes
        self._random = random.Random(seed)  # noqa: S311
        self._day = Day()
        self._started: list[_Started] = []
        self._open: list[SimulatedReplica] = []  # replicas that take requests, at the last tick
        self._idle_nodes: list[float] = [0.0] * nodes.num_kept  # since when each has no replica
        self._num_started = 0
        self._num_queued = 0  # requests that wait for a first replica

    def run(self) -> Day:
        """Replay everything, until the last request has ended."""
        seconds = self._arrivals.seconds.tolist()
        prompts, answers = self._arrivals.prompt_tokens.tolist(), self._arrivals.answer_tokens.tolist()
        for _ in range(self._controller.target):
            self._start(0.0)
            self._started[-1].ready_at = 0.0
        self._let_begin(0.0)
        now, num_arrived, num_shown = 0.0, 0, 0
        while now < self._arrivals.duration or self._num_unanswered():
            now += TICK
            while num_arrived < len(seconds) and seconds[num_arrived] <= now:
                prompt, answer = prompts[num_arrived], answers[num_arrived]
                self._arrive(Request(seconds[num_arrived], prompt, answer, prompt + answer / 2))
                num_arrived += 1
            self._tick(now)
            if now % SHOWN_EVERY == 0:
                self._day.replicas.append(len(self._taking()))
                self._day.arrived.append(num_arrived - num_shown)
                num_shown = num_arrived
        return self._day

    def _num_unanswered(self) -> int:
        return sum(one.replica.num_requests for one in self._started if one.replica is not None)

    def _taking(self) -> list[SimulatedReplica]:
        """The replicas that take requests."""
        return [one.replica for one in self._started if one.replica is not None and not one.is_draining]

    def _arrive(self, request: Request) -> None:
        """Give ``request`` to the less busy of two replicas, as Serve does."""
        if not self._open:
            self._day.num_asleep += 1
            self._num_queued = 1  # the ingress wakes the model
            return
        chosen = self._open if len(self._open) < 3 else self._random.sample(self._open, 2)
        for replica in chosen:
            replica.advance(request.arrived)
        if not min(chosen, key=_num_requests).add(request):
            self._day.num_refused += 1

    def _tick(self, now: float) -> None:
        """Let all replicas reach ``now``, and do what the controller decides."""
        loads = {}
        for one in self._started:
            if one.replica is not None:
                one.replica.advance(now)
                self._day.replica_seconds += TICK
                if not one.is_draining:
                    loads[one.number] = one.replica.load
        self._day.node_seconds += TICK * (len(self._started) + len(self._idle_nodes))
        self._controller.observe(now, loads)
        self._scale(now, self._controller.decide(now, list(loads), self._num_queued))
        self._let_begin(now)
        self._end_nodes(now)

    def _scale(self, now: float, target: int) -> None:
        """Start replicas, or let some drain: first those that have not begun, then the newest."""
        there = [one for one in self._started if not one.is_draining]
        for _ in range(target - len(there)):
            self._start(now)
        for one in sorted(there, key=lambda one: -one.ready_at)[: max(0, len(there) - target)]:
            one.is_draining = True

    def _start(self, now: float) -> None:
        """A replica on an idle node, else on a new one."""
        seconds = self._nodes.load_s
        if self._idle_nodes:
            self._idle_nodes.pop()
        else:
            seconds += self._nodes.start_s
        self._num_started += 1
        self._started.append(_Started(self._num_started, now + seconds))

    def _let_begin(self, now: float) -> None:
        for one in self._started:
            if one.replica is None and not one.is_draining and one.ready_at <= now:
                one.replica = SimulatedReplica(self._speed, now, self._day.waits)
                self._num_queued = 0
        self._open = self._taking()

    def _end_nodes(self, now: float) -> None:
        """A drained replica leaves its node idle. An idle node ends after its time."""
        ended = [one for one in self._started if one.is_draining and not (one.replica and one.replica.num_requests)]
        for one in ended:
            self._started.remove(one)
            self._idle_nodes.append(now)
        while self._idle_nodes and now - self._idle_nodes[0] >= self._nodes.idle_s:
            if len(self._started) + len(self._idle_nodes) <= self._nodes.num_kept:
                return
            self._idle_nodes.pop(0)


def _num_requests(replica: SimulatedReplica) -> int:
    return replica.num_requests
