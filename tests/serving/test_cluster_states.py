import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import DeploymentStatusOverview

from phi3_serve.core import VariantState
from phi3_serve.serving.cluster import variant_state, with_note


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


def test_while_a_new_version_is_built_the_old_one_answers() -> None:
    previous = VariantState("ready", num_replicas=2)
    assert variant_state(None, None, previous=previous) == previous
    assert variant_state(deployment("UPDATING"), None, previous=previous).state == "scaled_to_zero"


def test_a_starting_replica_tells_how_far_it_is() -> None:
    found = variant_state(deployment("UPSCALING", STARTING=1), None, lambda: "m: loading weights: 40 %")
    assert (found.state, found.detail) == ("loading", "m: loading weights: 40 %")


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
