"""What a client is told when Ray fails."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from phi3_serve.errors import EngineFailure, ModelUnavailable, Overloaded, Phi3ServeError
from phi3_serve.serving.ray_errors import RAY_ERRORS, from_ray, replica_errors


@pytest.mark.parametrize(
    ("error", "kind", "message", "retry_after_s"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), Overloaded, "Too many requests are waiting for this model.", 5),
        (DeploymentUnavailableError(DeploymentID(name="m")), ModelUnavailable, "The model's replicas could not be started.", None),
        (RayActorError(), ModelUnavailable, "The replica was lost; another one takes over.", 10),
        (ActorDiedError(), ModelUnavailable, "The replica was lost; another one takes over.", 10),
        (RayTaskError("generate", "...", KeyError("x")), EngineFailure, "The replica failed on this request: KeyError.", None),
        (RayServeException(), EngineFailure, "The request could not reach its model: RayServeException.", None),
    ],
)  # fmt: skip
def test_an_error_of_ray_is_one_of_ours(
    error: Exception, kind: type[Phi3ServeError], message: str, retry_after_s: float | None
) -> None:
    found = from_ray(error)
    assert (type(found), found.message, getattr(found, "retry_after_s", None)) == (kind, message, retry_after_s)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyError("x"), "The replica failed on this request: KeyError."),
        (TimeoutError(), "The replica failed on this request: TimeoutError."),
        (asyncio.CancelledError(), "The replica was lost; another one takes over."),
        (RayServeException(), "The request could not reach its model: RayServeException."),
    ],
)
def test_what_a_replica_raises_is_one_of_ray_s_errors(raised: BaseException, expected: str) -> None:
    async def call() -> None:
        with replica_errors():
            raise raised

    with pytest.raises(RAY_ERRORS) as caught:
        asyncio.run(call())
    assert from_ray(caught.value).message == expected
