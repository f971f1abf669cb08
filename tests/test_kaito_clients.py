"""The pages about KAITO's clients: each body that they show is answered, and each manifest is what Kubernetes reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from openai import OpenAI
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "kaito-clients"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tiny(make_tiny_app: Any) -> Any:
    with TestClient(make_tiny_app()) as client:
        yield client


@pytest.mark.parametrize("page", ["vs-code.md", "terraform.md", "demo-ui.md"])
def test_what_the_client_sends_is_answered(page: str, tiny: TestClient) -> None:
    (text,) = blocks(page, "json")
    body = json.loads(text)
    body.pop("model", None)  # here phi-3-tiny is served
    answer = tiny.post("/phi-3-tiny/chat", json=body)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["Result"], str)  # drawn, and to a text that is no turn: it may be empty


def test_the_extension_s_other_call_is_answered(tiny: TestClient) -> None:
    (text,) = blocks("vs-code.md", "json")
    answer = tiny.post("/v1/completions", json={**json.loads(text), "model": "phi-3-tiny"})
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["choices"][0]["text"], str)
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_the_stream_of_the_demo_has_a_choice_in_every_chunk(make_tiny_app: Any, serve_app: Any) -> None:
    app: FastAPI = make_tiny_app()
    with OpenAI(base_url=serve_app(app) + "/v1", api_key="YOUR_OPENAI_API_KEY") as client:
        model = client.models.list().data[0].id
        chunks = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "What is the capital of France?"},
            ],
            stream=True,
            temperature=0.7,
            max_tokens=500,
            top_p=1,
            frequency_penalty=0,
            presence_penalty=0,
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()


def test_the_manifests_lead_to_phi3_serve() -> None:
    service = yaml.safe_load(blocks("vs-code.md", "yaml")[0])
    ray_service = yaml.safe_load((ROOT / "k8s" / "rayservice.yaml").read_text())
    assert service["kind"] == "Service"
    assert service["spec"]["ports"] == [{"port": 80, "targetPort": 8000}]
    model = service["metadata"]["name"].removeprefix("workspace-")
    assert f"name: {model}" in ray_service["spec"]["serveConfigV2"]
    assert service["spec"]["selector"] == {"ray.io/serve": "true"}
    endpoint = yaml.safe_load(blocks("terraform.md", "yaml")[0])["data"]["AI_ENDPOINT"]
    assert endpoint == f"http://{ray_service['metadata']['name']}-serve-svc:8000/{model}/chat"
