"""The process of a replica: where its log goes, and how it ends."""

import logging
import os

from ray import serve
from ray.serve.exceptions import RayServeException

logger = logging.getLogger("phi3_serve")


def end_process(reason: str) -> None:
    """End this process at once, since its engine cannot answer any more.

    Serve sees a dead process at once and starts another replica. It sees a failed health check only after the third
    one. Until then a replica that fails every request at once looks idle and gets all requests. Another replica
    answers the requests that this one had not begun to answer.
    """
    logger.critical("this replica ends: %s", reason)
    os._exit(1)


def replica_name() -> str | None:
    """The name of this replica's actor; None outside Serve."""
    try:
        return serve.get_replica_context().replica_id.to_full_id_str()
    except RayServeException:
        return None


def log_through_serve() -> None:
    """Send the package's log lines where Ray Serve sends its own: to stderr and to the replica's log file."""
    serve_logger = logging.getLogger("ray.serve")
    logger.handlers = list(serve_logger.handlers)
    logger.setLevel(serve_logger.level)
    logger.propagate = False
