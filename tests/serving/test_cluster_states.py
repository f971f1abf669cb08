from dataclasses import replace

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import DeploymentStatusOverview

from phi3_serve.core.variant_state import VariantState
from phi3_serve.serving.cluster import variant_state, with_note
from phi3_serve.serving.load_status import LoadStatus


def deployment(
    status: str, message: str = "", trigger: str = "UNSPECIFIED", **replicas: int
) -> DeploymentStatusOverview:
    counts = {ReplicaState(name): count for name, count in replicas.items()}
    return DeploymentStatusOverview(
        DeploymentStatus(status), DeploymentStatusTrigger(trigger), replica_states=counts, message=message
    )


FAILURE = """The deployment failed to start 1 times in a row. Error:
Traceback (most recent call last):
    raise CheckpointError("x")
phi3_serve.errors.CheckpointError: /x/config.json: file is missing
"""


@pytest.mark.parametrize(
    ("overview", "missing", "state", "detail"),
    [
        (deployment("HEALTHY", RUNNING=1), None, "ready", ""),
        (deployment("UPSCALING", RUNNING=1, STARTING=1), None, "ready", ""),
        (deployment("HEALTHY", RUNNING=1), "1 GPU", "ready", ""),
        (deployment("UPDATING", RECOVERING=1), None, "ready", ""),
        (deployment("UPDATING", UPDATING=1), None, "ready", ""),
        (deployment("UPDATING", UPDATING=1, STARTING=1), None, "ready", ""),
        (deployment("HEALTHY", PENDING_MIGRATION=1, STARTING=1), None, "ready", ""),
        (deployment("HEALTHY"), None, "scaled_to_zero", "No replica runs; a request starts one."),
        (None, None, "loading", "The application is being built."),
        (
            deployment("UPSCALING", STARTING=1),
            None,
            "loading",
            "Its replica is starting.",
        ),
        (deployment("HEALTHY"), "1 GPU on one node, and none has it", "unplaceable", "A replica needs 1 GPU on one node, and none has it."),
        (deployment("UNHEALTHY", FAILURE), None, "failed", "/x/config.json: file is missing"),
        (deployment("DEPLOY_FAILED", "a\nlast line\n"), None, "failed", "last line"),
    ],
)  # fmt: skip
def test_state(overview: DeploymentStatusOverview | None, missing: str | None, state: str, detail: str) -> None:
    found = variant_state(overview, missing)
    assert (found.state, found.detail) == (state, detail)
    assert (found.retry_after_s is not None) == (state in ("loading", "scaled_to_zero"))


@pytest.mark.parametrize(
    "previous", [None, VariantState("scaled_to_zero"), VariantState("loading"), VariantState("ready")]
)
def test_of_a_version_that_cannot_be_built_only_the_replicas_before_it_answer(previous: VariantState | None) -> None:
    ready = variant_state(None, None, previous=previous, num_living=2, has_failed=True)
    assert (ready.state, ready.num_replicas) == ("ready", 2)
    assert "the version before it answers" in ready.detail
    asleep = variant_state(None, None, previous=previous, has_failed=True)
    assert (asleep.state, asleep.retry_after_s) == ("failed", None)
    loading = variant_state(None, None, (LoadStatus(model="m", text="40 %"),), previous=previous, has_failed=True)
    assert (loading.state, loading.detail) == ("loading", "40 %")


@pytest.mark.parametrize("status", ["UNHEALTHY", "DEPLOY_FAILED"])
@pytest.mark.parametrize("replicas", [{}, {"STOPPING": 1}, {"STARTING": 1}])
def test_a_model_whose_replica_is_replaced_is_loading(status: str, replicas: dict[str, int]) -> None:
    message = "A replica's health check failed. This deployment will be UNHEALTHY until the replica recovers or a new deploy happens."
    found = variant_state(deployment(status, message, "HEALTH_CHECK_FAILED", **replicas), None)
    assert (found.state, found.detail) == ("loading", "Its replica has ended; another one takes over.")
    assert found.retry_after_s is not None


@pytest.mark.parametrize("replicas", [{}, {"STARTING": 1}])
def test_a_replacement_that_fails_to_start_is_a_failure(replicas: dict[str, int]) -> None:
    message = f"A replica failed to start with exception. Retrying. Error:\n{FAILURE}"
    found = variant_state(deployment("UNHEALTHY", message, "HEALTH_CHECK_FAILED", **replicas), None)
    assert (found.state, found.detail) == ("failed", "/x/config.json: file is missing")


def test_a_replacement_on_the_lost_node_itself_is_no_failure_of_the_model() -> None:
    """The message of `make nodes`: Ray had not noticed the loss yet when Serve started the next replica."""
    context = ActorDiedErrorContext(actor_id=bytes(16), error_message="It was cancelled.", never_started=True)
    error = ActorDiedError(context)
    message = f"A replica failed to start with exception. Retrying. Error:\n{error}"
    for status in ("UNHEALTHY", "DEPLOY_FAILED"):
        found = variant_state(deployment(status, message, "HEALTH_CHECK_FAILED", STARTING=1), None)
        assert (found.state, found.detail) == ("loading", "Its replica has ended; another one takes over.")
        assert found.retry_after_s is not None


def test_an_ingress_that_starts_while_a_new_version_is_built_asks_the_replicas_that_live() -> None:
    found = variant_state(None, None, num_living=2)
    assert (found.state, found.num_replicas) == ("ready", 2)
    previous = VariantState("loading", "Its replica is starting.")
    assert variant_state(None, None, num_living=2, previous=previous) == previous


def test_while_a_new_version_is_built_the_old_one_answers() -> None:
    previous = VariantState("ready", num_replicas=2)
    assert variant_state(None, None, previous=previous) == previous
    assert variant_state(deployment("UPDATING"), None, previous=previous).state == "scaled_to_zero"


NOW = 1_000_000.0
PROGRESS = LoadStatus(model="m", text="m: loading weights: 40 %")
TRIED = LoadStatus(model="m", text="/x: file is missing", num_tries=3, next_try_at=NOW + 12.3)


@pytest.fixture
def at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_serve.serving.cluster.time.time", lambda: NOW)


def test_a_starting_replica_reports_its_progress() -> None:
    found = variant_state(deployment("UPSCALING", STARTING=1), None, [PROGRESS])
    assert (found.state, found.detail) == ("loading", "m: loading weights: 40 %")


@pytest.mark.usefixtures("at_one_time")
@pytest.mark.parametrize("is_running", [True, False])
def test_a_model_that_cannot_be_loaded_names_cause_tries_and_next_try(is_running: bool) -> None:
    """Whether its replica still starts, or runs without the model."""
    status = replace(TRIED, is_running=is_running)
    overview = deployment("HEALTHY", RUNNING=1) if is_running else deployment("UPDATING", STARTING=1)
    found = variant_state(overview, None, [status])
    assert (found.state, found.num_tries) == ("failed", 3)
    assert found.detail == "/x: file is missing. Tried 3 times; the next try is in 13 s."
    assert found.retry_after_s == found.next_try_s == pytest.approx(12.3)
    assert variant_state(overview, "1 GPU", [status]) == found  # the replica is placed


@pytest.mark.usefixtures("at_one_time")
def test_a_cause_that_stays_has_no_retry_after() -> None:
    status = replace(TRIED, text="gated.", num_tries=1, next_try_at=NOW + 300, heals=False, is_running=True)
    found = variant_state(deployment("HEALTHY", RUNNING=1), None, [status])
    assert found.detail == "gated. This does not pass by itself. Tried once; the next try is in 300 s."
    assert (found.retry_after_s, found.next_try_s) == (None, 300)


@pytest.mark.usefixtures("at_one_time")
def test_a_model_is_ready_when_one_replica_has_it() -> None:
    without = replace(TRIED, is_running=True)
    starting = replace(TRIED, text="other", next_try_at=NOW + 5)
    found = variant_state(deployment("HEALTHY", RUNNING=2), None, [without])
    assert (found.state, found.num_replicas) == ("ready", 1)
    assert found.detail == (
        "A further replica cannot load it: /x: file is missing. Tried 3 times; the next try is in 13 s."
    )
    found = variant_state(deployment("HEALTHY", RUNNING=2, STARTING=1), None, [starting])
    assert (found.state, found.num_replicas) == ("ready", 2)
    found = variant_state(deployment("HEALTHY", RUNNING=2), None, [without, without])
    assert found.state == "failed"
    found = variant_state(deployment("HEALTHY", RUNNING=1, STARTING=1), None, [without, starting])
    assert (found.state, found.next_try_s) == ("failed", 5)  # the next try of any of them
    found = variant_state(deployment("HEALTHY", RUNNING=1, STARTING=1), None, [without, PROGRESS])
    assert (found.state, found.detail) == ("loading", PROGRESS.text)
    assert variant_state(deployment("UPDATING", RECOVERING=1), None, [without]).state == "failed"
    assert variant_state(deployment("UPDATING", RECOVERING=1), None, [PROGRESS]).state == "loading"
    assert variant_state(deployment("UPDATING", UPDATING=1), None, [without]).state == "failed"
    found = variant_state(deployment("UPDATING", RECOVERING=2), None, [PROGRESS])
    assert (found.state, found.num_replicas) == ("ready", 1)


def test_a_try_that_runs_has_no_next_one() -> None:
    assert TRIED.wait_s(NOW + 12) == 1
    assert TRIED.wait_s(NOW + 1000) == 10
    assert TRIED.in_words(NOW + 1000) == "/x: file is missing. Tried 3 times; the next try runs now."


def test_a_stopped_rollout_is_named_beside_the_earlier_version_that_answers() -> None:
    message = FAILURE.replace("CheckpointError", "CheckpointIncomplete")
    found = variant_state(deployment("DEPLOY_FAILED", message, RUNNING=1), None)
    assert (found.state, found.num_replicas) == ("ready", 1)
    assert found.detail == (
        "Its new version cannot be started, and the earlier one answers: /x/config.json: file is missing"
    )


def test_an_elastic_cluster_waits_for_a_node_and_says_for_what() -> None:
    missing = "1 GPU on one node, and no node of the cluster has that"
    found = variant_state(deployment("UPSCALING", STARTING=1), missing, elastic=True)
    assert (found.state, found.detail) == ("loading", f"It waits for a new node: a replica needs {missing}.")
    assert found.retry_after_s is not None
    assert variant_state(deployment("HEALTHY"), missing, elastic=True).state == "scaled_to_zero"


def test_a_note_is_the_detail_of_a_ready_model() -> None:
    assert with_note(VariantState("ready", num_replicas=2), "slow") == VariantState("ready", "slow", num_replicas=2)
    assert with_note(VariantState("ready"), "") == VariantState("ready")
    assert with_note(VariantState("failed", "gone"), "slow") == VariantState("failed", "gone")


def test_a_state_is_plain_data() -> None:
    assert VariantState("ready") == VariantState("ready", "", None)
