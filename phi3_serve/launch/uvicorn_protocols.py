"""How uvicorn, the HTTP server of Serve's own proxy, treats a request that asks for another protocol.

uvicorn's default parser, httptools, stops at the end of the headers of such a request and loses its body. Java's
``HttpClient`` sends ``Upgrade: h2c`` with its first request. A server may ignore the header (RFC 9110, section 7.8).
uvicorn's other parser, h11, does so.
"""

from starlette.middleware import Middleware
from uvicorn import config


def ignore_upgrades() -> list[Middleware]:
    """Let the servers that this process starts ignore ``Upgrade``. Ray wants middlewares; there are none."""
    config.HTTP_PROTOCOLS["auto"] = config.HTTP_PROTOCOLS["h11"]
    config.WS_PROTOCOLS["auto"] = None  # no route is a websocket
    return []
