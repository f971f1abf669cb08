"""The states of the served variants, read from Ray Serve and from the cluster's nodes. Reading starts no replica."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from phi3_serve.config.model_name import deployment_name
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.overload import STARTING_RETRY_AFTER_S
from phi3_serve.serving.announced_adapters import announced_adapters
from phi3_serve.serving.cluster_resources import node_resources, num_living_replicas, num_replicas_without_node
from phi3_serve.serving.configured_adapters import configured_adapters
from phi3_serve.serving.load_status import LoadStatus, read_load_statuses
from phi3_serve.serving.loaded_replica import last_loaded
from phi3_serve.serving.placement import Placement

logger = logging.getLogger("ray.serve")

# Replica states of Serve. After the controller has died, a new one lists running replicas as RECOVERING; they answer.
# A replica on a node that is drained is PENDING_MIGRATION, and answers until another one has started. One that is given
# a changed user_config is UPDATING for some milliseconds, and requests wait for it in Serve's router.
ANSWERING_STATES = ("RUNNING", "RECOVERING", "PENDING_MIGRATION", "UPDATING")
STARTING_STATES = ("STARTING",)
# Serve's statuses of a deployment whose replicas fail to start or fail their health check.
FAILURE_STATUSES = ("DEPLOY_FAILED", "UNHEALTHY")
_NEVER_RAN = "The actor never ran"  # in the words of ray.exceptions.ActorDiedError
# All requests within this time share one reading, which costs the controller a few milliseconds.
MAX_AGE_S = 1.0
# A request waits at most this long for a new reading if there is an older one.
MAX_WAIT_S = 0.25
# A request that would be refused because of the older one waits this long.
MAX_WAIT_BEFORE_REFUSAL_S = 2.0
# A request to a model that was ready within this time does not wait: a new reading runs in the background.
MAX_AGE_OF_READY_S = 10.0
# The background reading starts when the request is probably on its way: both run in this process.
BACKGROUND_DELAY_S = 0.1
# The last line of a traceback of ``phi3_serve.errors``, as Serve's message holds it.
_OUR_ERROR = re.compile(r"^\s*phi3_serve\.errors\.\w+: (.*)$", re.MULTILINE)


class ClusterView:
    """The states of the declared variants, read at most once a second for any number of requests.

    The controller may be slow, or dead and restarting. Replicas answer meanwhile, so the last reading stays valid.
    """

    def __init__(self, placements: Mapping[str, Placement], *, app_name: str, elastic: bool) -> None:
        self._placements = placements
        self._app_name = app_name
        self._elastic = elastic
        self.is_being_built = False
        """Whether the last reading found a new version of the application whose deployments Serve does not know yet."""
        self._states: Mapping[str, VariantState] = {}
        self._began_at = self._read_at = float("-inf")  # of the last reading, in time.monotonic()
        self._answered_at: dict[str, float] = {}  # of the last request that was answered, by model
        self._refresh_task: asyncio.Task[None] | None = None

    async def states(self) -> Mapping[str, VariantState]:
        """The state of every variant.

        Raises:
            ModelUnavailable: no reading has succeeded yet.
        """
        self._refresh_if_stale()
        if self._refresh_task is not None:
            await asyncio.wait({self._refresh_task}, timeout=MAX_WAIT_S if self._states else None)
        if not self._states:
            raise ModelUnavailable("The state of the cluster cannot be read now.", STARTING_RETRY_AFTER_S)
        return self._states

    async def state_of(self, model: str) -> VariantState:
        """The state of ``model``. If the model was ready a moment ago, the request does not wait for a reading."""
        known = self._states.get(model)
        if known and known.state == "ready" and time.monotonic() - self._read_at < MAX_AGE_OF_READY_S:
            self._refresh_if_stale(delay_s=BACKGROUND_DELAY_S)
            return known
        state = (await self.states())[model]
        if state.state != "ready" and self._refresh_task is not None:
            await self._end_of_reading()
            state = self._states[model]
        if state.state != "ready" and self._began_at < self._answered_at.get(model, self._began_at):
            return await self.new_state_of(model)
        return state

    def note_answer(self, model: str) -> None:
        """A replica of ``model`` has begun to answer. No older reading may say any more that the model is not ready."""
        self._answered_at[model] = time.monotonic()

    async def new_state_of(self, model: str) -> VariantState:
        """The state of ``model`` in a reading that begins after this call, so that it has what was deployed before.

        It waits up to ``MAX_AGE_S`` for that reading. If the controller is slow or away, the last known state is used.
        """
        asked_at = time.monotonic()
        await self._end_of_reading()  # of one that may have begun before
        if self._began_at < asked_at:
            await asyncio.sleep(max(0.0, self._read_at + MAX_AGE_S - time.monotonic()))
            if self._began_at < asked_at and self._refresh_task is None:
                self._refresh_task = asyncio.create_task(self._refresh(0.0))
            await self._end_of_reading()
        return self._states[model]

    async def _end_of_reading(self) -> None:
        if self._refresh_task is not None:
            await asyncio.wait({self._refresh_task}, timeout=MAX_WAIT_BEFORE_REFUSAL_S)

    def num_replicas(self, model: str) -> int:
        """The number of replicas of ``model`` that answered at the last reading."""
        known = self._states.get(model)
        return known.num_replicas if known else 0

    def _refresh_if_stale(self, delay_s: float = 0.0) -> None:
        if self._refresh_task is None and time.monotonic() - self._read_at > MAX_AGE_S:
            self._refresh_task = asyncio.create_task(self._refresh(delay_s))

    async def _refresh(self, delay_s: float) -> None:
        try:
            await asyncio.sleep(delay_s)
            began_at = time.monotonic()
            self._states = await asyncio.to_thread(self._read)
            self._began_at, self._read_at = began_at, time.monotonic()
        except Exception:  # Ray raises many kinds while its controller or head is away
            logger.warning("the state of the cluster cannot be read; the last known state is used", exc_info=True)
        finally:
            self._refresh_task = None

    def _read(self) -> Mapping[str, VariantState]:
        application = serve.status().applications.get(self._app_name)
        deployments = application.deployments if isinstance(application, ApplicationStatusOverview) else {}
        has_failed = isinstance(application, ApplicationStatusOverview) and cannot_be_built(application)
        self.is_being_built = isinstance(application, ApplicationStatusOverview) and is_being_built(application)
        nodes = node_resources()
        totals = [node.total for node in nodes]
        is_starting = any(map(_num_starting, deployments.values()))
        waiting = num_replicas_without_node(self._app_name) if is_starting else Counter[str]()
        statuses = read_load_statuses(self._app_name)
        living = Counter[str]() if deployments else num_living_replicas(self._app_name)

        def shortage(model: str, placement: Placement) -> str | None:
            """What all starting replicas of ``model`` wait for."""
            name = deployment_name(model)
            if waiting[name] and waiting[name] >= _num_starting(deployments[name]):
                return placement.shortage(nodes)
            return None

        states = {
            model: with_note(
                variant_state(
                    deployments.get(deployment_name(model)),
                    placement.missing_resource(totals),
                    statuses.get(model, ()),
                    shortage(model, placement),
                    elastic=self._elastic,
                    num_living=living[deployment_name(model)],
                    previous=self._states.get(model),
                    has_failed=has_failed,
                ),
                placement.device_note(totals),
            )
            for model, placement in self._placements.items()
        }
        return self._with_adapters({model: self._with_announced(model, state) for model, state in states.items()})

    def _with_announced(self, model: str, state: VariantState) -> VariantState:
        """``state``; if it is ready, with what its replicas have announced."""
        if state.state != "ready":
            return state
        deployment = f"{self._app_name}#{deployment_name(model)}"
        loaded = last_loaded(deployment)
        engine = None if loaded is None else loaded.engine
        return replace(state, engine=engine, adapters=announced_adapters(deployment))

    def _with_adapters(self, states: Mapping[str, VariantState]) -> Mapping[str, VariantState]:
        """``states``; those of models that are not ready with the adapters that their next replicas will offer."""
        if not (deployments := {m: deployment_name(m) for m, state in states.items() if state.state != "ready"}):
            return states
        offered = configured_adapters(self._app_name, list(deployments.values()))
        found = {model: replace(states[model], adapters=offered.get(name)) for model, name in deployments.items()}
        return {**states, **found}


def is_being_built(application: ApplicationStatusOverview) -> bool:
    """Whether a new version was deployed whose deployments Serve does not know yet. This takes seconds."""
    return application.status == ApplicationStatus.DEPLOYING and not application.deployments


def cannot_be_built(application: ApplicationStatusOverview) -> bool:
    """Whether the last deploy has failed before Serve knew its deployments.

    Until the next deploy, the replicas of the earlier version answer, and Serve starts no other for a request.
    """
    return application.status == ApplicationStatus.DEPLOY_FAILED and not application.deployments


def num_answering(deployment: DeploymentStatusOverview, statuses: Sequence[LoadStatus]) -> int:
    """The number of replicas that run and have their model. ``statuses`` are those of the model's other replicas.

    A new controller also lists replicas as RECOVERING that are still in their constructor.
    """
    num_running = sum(status.is_running for status in statuses)
    num_starting = min(_count(deployment, ("RECOVERING",)), len(statuses) - num_running)
    return _count(deployment, ANSWERING_STATES) - num_running - num_starting


def variant_state(
    deployment: DeploymentStatusOverview | None,
    missing_resource: str | None,
    statuses: Sequence[LoadStatus] = (),
    shortage: str | None = None,
    *,
    elastic: bool = False,
    num_living: int = 0,
    previous: VariantState | None = None,
    has_failed: bool = False,
) -> VariantState:
    """The state of one variant.

    ``missing_resource`` says what no node has; an ``elastic`` cluster may get a node that has it. ``statuses`` are
    those of the replicas that have no model yet. ``shortage`` is what all starting replicas wait for. Serve lists no
    deployment while it builds a new version of the application; the old replicas answer, so ``previous`` stays valid.
    An ingress that has started just before has no ``previous``; then ``num_living``, the replicas' actors, decides.
    If it cannot build that version, as ``has_failed`` says, they decide, too.
    """
    if deployment is None and has_failed:
        return _of_earlier_version(num_living - len(statuses), statuses)
    if deployment is None:
        if previous is None and (num_replicas := num_living - len(statuses)) > 0:
            return VariantState("ready", num_replicas=num_replicas)
        return previous or VariantState("loading", "The application is being built.", STARTING_RETRY_AFTER_S)
    if (num_replicas := num_answering(deployment, statuses)) > 0:
        return VariantState("ready", _trouble_of_others(deployment, statuses), num_replicas=num_replicas)
    if statuses:
        return _without_model(statuses)
    if missing_resource is not None and not elastic:
        return VariantState("unplaceable", f"A replica needs {missing_resource}.")
    if reason := _failure(deployment):
        return VariantState("failed", reason)
    if _is_replacing(deployment):
        return VariantState(
            "loading",
            f"Its replica waits for {shortage}." if shortage else "Its replica has ended; another one takes over.",
            STARTING_RETRY_AFTER_S,
        )
    if _num_starting(deployment):
        return VariantState("loading", _what_it_waits_for(shortage, missing_resource), STARTING_RETRY_AFTER_S)
    return VariantState("scaled_to_zero", "No replica runs; a request starts one.", STARTING_RETRY_AFTER_S)


def _of_earlier_version(num_replicas: int, statuses: Sequence[LoadStatus]) -> VariantState:
    """The state of a variant of which ``num_replicas`` answer, while the newest version cannot be built.

    The reason may hold values of the config, which clients must not see.
    """
    if num_replicas > 0:
        detail = "The last deploy failed, as `serve status` shows; the version before it answers."
        return VariantState("ready", detail, num_replicas=num_replicas)
    if statuses:
        return _without_model(statuses)
    return VariantState(
        "failed", "The last deploy failed, as `serve status` shows; no replica starts before the next one."
    )


def _num_starting(deployment: DeploymentStatusOverview) -> int:
    return _count(deployment, STARTING_STATES)


def with_note(state: VariantState, note: str) -> VariantState:
    """``state``; if it is ready, with ``note`` in its detail."""
    if not note or state.state != "ready":
        return state
    return replace(state, detail=f"{note} {state.detail}".strip())


def _what_it_waits_for(shortage: str | None, missing_resource: str | None) -> str:
    if shortage:
        return f"Its replica waits for {shortage}."
    return (
        f"It waits for a new node: a replica needs {missing_resource}."
        if missing_resource
        else "Its replica is starting."
    )


def _without_model(statuses: Sequence[LoadStatus]) -> VariantState:
    """The state of a model whose replicas are all without it."""
    now = time.time()
    for status in statuses:
        if status.next_try_at is None:  # a try has got so far that it reports its progress
            return VariantState("loading", status.text, STARTING_RETRY_AFTER_S, num_tries=status.num_tries)
    status = min(statuses, key=lambda one: one.wait_s(now))
    wait_s = status.wait_s(now)
    return VariantState(
        "failed",
        status.in_words(now),
        wait_s if status.heals else None,
        num_tries=status.num_tries,
        next_try_s=wait_s,
    )


def _trouble_of_others(deployment: DeploymentStatusOverview, statuses: Sequence[LoadStatus]) -> str:
    """Why further replicas of a model that answers cannot load it; empty if none has failed."""
    now = time.time()
    if failed := [status for status in statuses if status.next_try_at is not None]:
        return f"A further replica cannot load it: {failed[0].in_words(now)}"
    if deployment.status.value == "DEPLOY_FAILED" and (reason := _failure(deployment)):
        return f"Its new version cannot be started, and the earlier one answers: {reason}"
    return ""


def _count(deployment: DeploymentStatusOverview, states: Sequence[str]) -> int:
    """The replicas in one of ``states`` of Serve."""
    replicas = cast(Mapping[str, int], deployment.replica_states)
    return sum(replicas.get(state, 0) for state in states)


def _failure(deployment: DeploymentStatusOverview) -> str | None:
    """Why the replicas of a deployment cannot start, in one line; None if they can."""
    if deployment.status.value not in FAILURE_STATUSES or _is_replacing(deployment):
        return None
    if found := _OUR_ERROR.search(deployment.message):
        return found[1]
    lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
    return lines[-1] if lines else "Its replicas cannot start."


def _is_replacing(deployment: DeploymentStatusOverview) -> bool:
    """Whether a replica that had answered has ended, and the start of the next one has not failed.

    Serve keeps the trigger when the next one fails to start, and changes the message alone. A replica that Ray places
    on a node that has just been lost never runs, which says nothing about the model: Serve starts another one.
    """
    has_failed = "failed to start" in deployment.message and _NEVER_RAN not in deployment.message
    return (
        deployment.status.value in FAILURE_STATUSES
        and deployment.status_trigger.value == "HEALTH_CHECK_FAILED"
        and not has_failed
    )
