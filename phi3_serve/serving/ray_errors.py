"""Errors of Ray as errors of this package. Every call of a deployment handle goes through this translation."""

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from phi3_serve import overload
from phi3_serve.errors import EngineFailure, ModelUnavailable, Phi3ServeError
from phi3_serve.overload import STARTING_RETRY_AFTER_S

RAY_ERRORS = (RayError, RayServeException, AioRpcError)  # what a call of a deployment handle may raise


def from_ray(error: Exception) -> Phi3ServeError:
    """The error that a client gets for ``error``, one of RAY_ERRORS."""
    if isinstance(error, BackPressureError):
        return overload.router_is_full()
    if isinstance(error, DeploymentUnavailableError):
        return ModelUnavailable("The model's replicas could not be started.")
    if isinstance(error, RayActorError):
        return ModelUnavailable("The replica was lost; another one takes over.", STARTING_RETRY_AFTER_S)
    if isinstance(error, RayTaskError):
        return EngineFailure(f"The replica failed on this request: {type(error.cause).__name__}.")
    cause = f"gRPC status {error.code().name}" if isinstance(error, AioRpcError) else type(error).__name__
    return EngineFailure(f"The request could not reach its model: {cause}.")
