"""Slashes in paths."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.config.app import AppConfig
from tests.support import LocalBackend

SERVER = "http://testserver"
CHAT: dict[str, Any] = {"prompt": "hi", "generate_kwargs": {"max_new_tokens": 2, "do_sample": False}}
TURN: dict[str, Any] = {"model": "tested", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "written", "body"),
    [
        ("/chat", "/chat/", CHAT),
        ("/chat", "//chat", CHAT),
        ("/tested/chat", "/tested//chat//", CHAT),
        ("/v1/chat/completions", "/v1//chat/completions/", TURN),
        ("/v1/messages", "//v1/messages/", TURN),
        ("/tokenize", "/tokenize/", {"prompt": "hi"}),
    ],
)
@pytest.mark.parametrize("root", ["", "/phi3"])
def test_empty_parts_of_a_path_do_not_matter(
    backend: LocalBackend, config: AppConfig, path: str, written: str, body: dict[str, Any], root: str
) -> None:
    body = {**body, "temperature": 0} if body is TURN else body
    with TestClient(create_app(backend, config), root_path=root, follow_redirects=False) as client:
        expected, found = (client.post(f"{SERVER}{root}{there}", json=body) for there in (path, written))
    assert (expected.status_code, found.status_code) == (200, 200)
    assert without_ids(found.json()) == without_ids(expected.json())


def without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


def test_an_error_has_the_format_of_its_api(client: TestClient) -> None:
    assert "error" in client.post(f"{SERVER}//v1/chat/completions/", json={}).json()
    assert "detail" in client.post("/chat/", json={}).json()
    assert client.post("/v1/nothing/", json={}).status_code == 404


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tested", "/models/tested", "/health", "/ready"])
def test_gets_are_answered_without_a_redirect(client: TestClient, path: str) -> None:
    found = client.get(f"{path}/", follow_redirects=False)
    assert (found.status_code, found.json()) == (200, client.get(path).json())


@pytest.mark.parametrize("path", ["/ui", "/docs"])
def test_a_page_keeps_its_own_address(client: TestClient, path: str) -> None:
    found = client.get(f"{path}/", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (307, SERVER + path)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/ui/nothing", 404), ("/ui/nothing/", 404), ("/ui//", 200), ("/docs/no", 404), ("/docs//", 200)],
)
def test_no_redirect_of_a_page_leads_in_a_circle(client: TestClient, path: str, status: int) -> None:
    assert client.get(SERVER + path).status_code == status


def test_slashes_lift_no_rule_of_keys(backend: LocalBackend, config: AppConfig) -> None:
    auth = {"keys": [{"name": "asks", "hash": hash_of("key"), "scopes": ["generate"]}]}
    config = AppConfig.model_validate({**config.model_dump(), "auth": auth})
    with TestClient(create_app(backend, config), headers={"Authorization": "Bearer key"}) as client:
        for path in ("/metrics", "/metrics/", "//metrics"):
            assert client.get(SERVER + path).status_code == 403
        assert client.get("/v1/models/", headers={"Authorization": ""}).status_code == 401
