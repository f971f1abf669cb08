"""How the variants of this application stand, read from Ray Serve and from the cluster's nodes; wakes none."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import ray
from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from phi3_serve.core import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.overload import STARTING_RETRY_AFTER_S
from phi3_serve.serving import load_status as board
from phi3_serve.serving.placement import Placement

logger = logging.getLogger("ray.serve")

# A new controller finds again, one by one, the replicas that the dead one had started; they answer all the while.
ANSWERING = ("RUNNING", "RECOVERING")
STARTING = ("STARTING", "UPDATING")
# One reading serves all requests of this long; a reading costs the controller a few milliseconds.
SECONDS_FRESH = 1.0
SECONDS_PATIENT = 0.25
# A model that was ready so long ago is asked at once, and the reading goes on beside it.
SECONDS_TRUSTED = 10.0
# That reading begins when the request is likely under way: both run in this process.
SECONDS_ASIDE = 0.1


def deployment_name(model: str) -> str:
    """The Serve deployment of a model; Ray allows no slash in it."""
    return model.replace("/", "--")


class ClusterView:
    """The states of the declared variants, read at most once a second however many ask.

    The controller may be slow, or dead and being restarted; replicas answer meanwhile, so an older reading
    serves until it is back.
    """

    def __init__(self, placements: Mapping[str, Placement], *, app_name: str, elastic: bool) -> None:
        self._placements = placements
        self._app_name = app_name
        self._elastic = elastic
        self._states: Mapping[str, VariantState] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def states(self) -> Mapping[str, VariantState]:
        """The state of every variant.

        Raises:
            ModelUnavailable: it could not be read even once.
        """
        self._begin_reading_where_old()
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=SECONDS_PATIENT if self._states else None)
        if not self._states:
            raise ModelUnavailable("The state of the cluster cannot be read now.", STARTING_RETRY_AFTER_S)
        return self._states

    async def state_of(self, model: str) -> VariantState:
        """The state of ``model``; no request to a model that was ready a moment ago waits for a reading."""
        known = self._states.get(model)
        if known and known.state == "ready" and time.monotonic() - self._read_at < SECONDS_TRUSTED:
            self._begin_reading_where_old(SECONDS_ASIDE)
            return known
        return (await self.states())[model]

    def num_replicas(self, model: str) -> int:
        """How many replicas of ``model`` answered at the last reading."""
        known = self._states.get(model)
        return known.num_replicas if known else 0

    def _begin_reading_where_old(self, after_s: float = 0.0) -> None:
        if self._reading is None and time.monotonic() - self._read_at > SECONDS_FRESH:
            self._reading = asyncio.create_task(self._refresh(after_s))

    async def _refresh(self, after_s: float) -> None:
        try:
            await asyncio.sleep(after_s)
            self._states = await asyncio.to_thread(self._read)
            self._read_at = time.monotonic()
        except Exception:  # whatever Ray raises while its controller or head is away
            logger.warning("the state of the cluster cannot be read; the last one known serves", exc_info=True)
        finally:
            self._reading = None

    def _read(self) -> Mapping[str, VariantState]:
        application = serve.status().applications.get(self._app_name)
        deployments = application.deployments if isinstance(application, ApplicationStatusOverview) else {}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return {
            model: variant_state(
                deployments.get(deployment_name(model)),
                None if self._elastic else placement.missing_from(nodes),
                partial(board.told, model),
                before=self._states.get(model),
            )
            for model, placement in self._placements.items()
        }


def variant_state(
    deployment: DeploymentStatusOverview | None,
    missing: str | None,
    told: Callable[[], str | None] = lambda: None,
    before: VariantState | None = None,
) -> VariantState:
    """The state of one variant, given its deployment, which resource no node has, what a starting replica tells, and
    the state before.

    While Serve builds a new version of the application, it lists no deployment; the old ones answer.
    """
    if deployment is None:
        building = "The application is being built."
        return before or VariantState("loading", building, STARTING_RETRY_AFTER_S)
    replicas = cast(Mapping[str, int], deployment.replica_states)
    if num_answering := sum(replicas.get(state, 0) for state in ANSWERING):
        return VariantState("ready", num_replicas=num_answering)
    if missing is not None:
        return VariantState("unplaceable", f"A replica needs {missing}.")
    if reason := _failure(deployment):
        return VariantState("failed", reason)
    if any(replicas.get(state) for state in STARTING):
        words = told() or "Its replica is starting: waiting for a node or loading weights."
        return VariantState("loading", words, STARTING_RETRY_AFTER_S)
    return VariantState("scaled_to_zero", "No replica runs; a request starts one.", STARTING_RETRY_AFTER_S)


def _failure(deployment: DeploymentStatusOverview) -> str | None:
    """Why the replicas of a deployment cannot start, in one line; None where they can."""
    if deployment.status.value not in ("DEPLOY_FAILED", "UNHEALTHY"):
        return None
    lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
    marker = "CheckpointError: "
    ours = next((line.split(marker, 1)[1] for line in lines if marker in line), None)
    return ours or (lines[-1] if lines else "Its replicas cannot start.")
