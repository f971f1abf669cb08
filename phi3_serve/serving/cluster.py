"""The states of the served variants, read from Ray Serve and from the cluster's nodes. Reading starts no replica."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from phi3_serve.config import deployment_name
from phi3_serve.core import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.overload import STARTING_RETRY_AFTER_S
from phi3_serve.serving.cluster_resources import node_resources, num_replicas_without_node
from phi3_serve.serving.load_status import read_engine_info, read_load_status
from phi3_serve.serving.placement import Placement

logger = logging.getLogger("ray.serve")

# Replica states of Serve. After the controller has died, a new one lists running replicas as RECOVERING; they answer.
ANSWERING_STATES = ("RUNNING", "RECOVERING")
STARTING_STATES = ("STARTING", "UPDATING")
# Serve's statuses of a deployment whose replicas fail to start or fail their health check.
FAILURE_STATUSES = ("DEPLOY_FAILED", "UNHEALTHY")
# All requests within this time share one reading, which costs the controller a few milliseconds.
MAX_AGE_S = 1.0
# A request waits at most this long for a new reading if there is an older one.
MAX_WAIT_S = 0.25
# A request to a model that was ready within this time does not wait: a new reading runs in the background.
MAX_AGE_OF_READY_S = 10.0
# The background reading starts when the request is probably on its way: both run in this process.
BACKGROUND_DELAY_S = 0.1


class ClusterView:
    """The states of the declared variants, read at most once a second for any number of requests.

    The controller may be slow, or dead and restarting. Replicas answer meanwhile, so the last reading stays valid.
    """

    def __init__(self, placements: Mapping[str, Placement], *, app_name: str, elastic: bool) -> None:
        self._placements = placements
        self._app_name = app_name
        self._elastic = elastic
        self._states: Mapping[str, VariantState] = {}
        self._read_at = float("-inf")
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
        return (await self.states())[model]

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
            self._states = await asyncio.to_thread(self._read)
            self._read_at = time.monotonic()
        except Exception:  # Ray raises many kinds while its controller or head is away
            logger.warning("the state of the cluster cannot be read; the last known state is used", exc_info=True)
        finally:
            self._refresh_task = None

    def _read(self) -> Mapping[str, VariantState]:
        application = serve.status().applications.get(self._app_name)
        deployments = application.deployments if isinstance(application, ApplicationStatusOverview) else {}
        nodes = node_resources()
        totals = [node.total for node in nodes]
        is_starting = any(map(_num_starting, deployments.values()))
        waiting = num_replicas_without_node(self._app_name) if is_starting else Counter[str]()

        def read_status(model: str, placement: Placement) -> str | None:
            name = deployment_name(model)
            if waiting[name] and waiting[name] >= _num_starting(deployments[name]):
                shortage = placement.shortage(nodes)
                return f"Its replica waits for {shortage}." if shortage else None
            return read_load_status(model)

        states = {
            model: with_note(
                variant_state(
                    deployments.get(deployment_name(model)),
                    placement.missing_resource(totals),
                    partial(read_status, model, placement),
                    elastic=self._elastic,
                    previous=self._states.get(model),
                ),
                placement.device_note(totals),
            )
            for model, placement in self._placements.items()
        }
        return {
            model: replace(state, engine=read_engine_info(model)) if state.state == "ready" else state
            for model, state in states.items()
        }


def variant_state(
    deployment: DeploymentStatusOverview | None,
    missing_resource: str | None,
    read_status: Callable[[], str | None] = lambda: None,
    *,
    elastic: bool = False,
    previous: VariantState | None = None,
) -> VariantState:
    """The state of one variant.

    ``missing_resource`` says what no node has; an ``elastic`` cluster may get a node that has it. ``read_status`` reads
    how far a starting replica is. Serve lists no deployment while it builds a new version of the application; the old
    replicas answer, so ``previous`` stays valid.
    """
    if deployment is None:
        return previous or VariantState("loading", "The application is being built.", STARTING_RETRY_AFTER_S)
    replicas = cast(Mapping[str, int], deployment.replica_states)
    if num_answering := sum(replicas.get(state, 0) for state in ANSWERING_STATES):
        return VariantState("ready", num_replicas=num_answering)
    if missing_resource is not None and not elastic:
        return VariantState("unplaceable", f"A replica needs {missing_resource}.")
    if reason := _failure(deployment):
        return VariantState("failed", reason)
    if _is_replacing(deployment):
        status = read_status() or "Its replica has ended; another one takes over."
        return VariantState("loading", status, STARTING_RETRY_AFTER_S)
    if _num_starting(deployment):
        status = read_status() or (
            f"It waits for a new node: a replica needs {missing_resource}."
            if missing_resource
            else "Its replica is starting."
        )
        return VariantState("loading", status, STARTING_RETRY_AFTER_S)
    return VariantState("scaled_to_zero", "No replica runs; a request starts one.", STARTING_RETRY_AFTER_S)


def _num_starting(deployment: DeploymentStatusOverview) -> int:
    replicas = cast(Mapping[str, int], deployment.replica_states)
    return sum(replicas.get(state, 0) for state in STARTING_STATES)


def with_note(state: VariantState, note: str) -> VariantState:
    """``state``; if it is ready, with ``note`` as its detail."""
    return replace(state, detail=note) if note and state.state == "ready" else state


def _failure(deployment: DeploymentStatusOverview) -> str | None:
    """Why the replicas of a deployment cannot start, in one line; None if they can."""
    if deployment.status.value not in FAILURE_STATUSES or _is_replacing(deployment):
        return None
    lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
    marker = "CheckpointError: "
    reason = next((line.split(marker, 1)[1] for line in lines if marker in line), None)
    return reason or (lines[-1] if lines else "Its replicas cannot start.")


def _is_replacing(deployment: DeploymentStatusOverview) -> bool:
    """Whether a replica that had answered has ended, and the start of the next one has not failed.

    Serve keeps the trigger when the next one fails to start, and changes the message alone.
    """
    return (
        deployment.status.value in FAILURE_STATUSES
        and deployment.status_trigger.value == "HEALTH_CHECK_FAILED"
        and "failed to start" not in deployment.message
    )
