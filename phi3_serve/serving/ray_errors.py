"""Errors of Ray as errors of this package. Every call of a deployment handle goes through this translation."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from phi3_serve import overload
from phi3_serve.errors import EngineFailure, ModelUnavailable, Phi3ServeError
from phi3_serve.overload import STARTING_RETRY_AFTER_S

RAY_ERRORS = (RayError, RayServeException, AioRpcError)  # what a call of a deployment handle may raise


@contextmanager
def replica_errors() -> Iterator[None]:
    """Let a call of a replica raise RAY_ERRORS only.

    Ray's object store wraps what a replica raises. gRPC brings it as it is, also a CancelledError or a TimeoutError,
    which would look like those of this process.
    """
    try:
        yield
    except asyncio.CancelledError:
        if _is_task_cancelled():
            raise
        raise RayActorError(error_msg="The replica has cancelled the call.") from None
    except AioRpcError as error:
        if error.code() is StatusCode.CANCELLED:  # by the replica, which ends
            raise RayActorError(error_msg="The replica has cancelled the call.") from error
        raise
    except (*RAY_ERRORS, StopAsyncIteration):
        raise
    except Exception as error:
        raise RayTaskError("", "", error) from error


def _is_task_cancelled() -> bool:
    """Whether this task is to end, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


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
