"""uvicorn, the server of Serve's own proxy, keeps the body of a request that asks for another protocol."""

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI, Request, Response
from uvicorn import config

from phi3_serve.launch import proxy
from phi3_serve.launch.uvicorn_protocols import ignore_upgrades
from tests.upgrades import BODY, UPGRADES, post_with_upgrade


@pytest.mark.parametrize("protocol", UPGRADES)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upgrade_is_ignored(
    serve_app: Callable[[FastAPI], str], monkeypatch: pytest.MonkeyPatch, protocol: str, is_chunked: bool
) -> None:
    for table in (config.HTTP_PROTOCOLS, config.WS_PROTOCOLS):
        monkeypatch.setitem(table, "auto", table["auto"])  # restored after the test
    assert ignore_upgrades() == []
    app = FastAPI()

    @app.post("/chat")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    address = urlsplit(serve_app(app))
    assert post_with_upgrade((str(address.hostname), address.port or 0), protocol, is_chunked) == BODY


def test_ray_calls_it_in_its_own_proxy() -> None:
    name = proxy.environment("python", port=1, request_timeout_s=1)["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    module, _, function = name.rpartition(".")
    assert (module, function) == (ignore_upgrades.__module__, ignore_upgrades.__name__)
