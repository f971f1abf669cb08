"""Which API a path belongs to, and that the OpenAPI document promises the statuses of that API and no others."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from phi3_serve.api.anthropic.errors import ANTHROPIC
from phi3_serve.api.error_formats import error_format_of
from phi3_serve.api.error_mapping import MEANING, STATUS, ErrorFormat, documented
from phi3_serve.api.kaito.errors import KAITO
from phi3_serve.api.ollama.errors import OLLAMA
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.errors import InvalidRequest, ModelUnavailable, UnknownModel


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", KAITO),
        ("/chat", KAITO),
        ("/phi-3-tiny/chat", KAITO),
        ("/v1/chat", OPENAI),  # no model is named v1
        ("/v10", KAITO),
        ("/v1", OPENAI),
        ("/v1/models", OPENAI),
        ("/models", OPENAI),
        ("/completions", OPENAI),
        ("/embeddings", OPENAI),
        ("/chat/completions", OPENAI),
        ("/v1/chat/completions", OPENAI),
        ("/v1/owner/model/chat", OPENAI),
        ("/models/v1/x", KAITO),
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messages/batches/x", ANTHROPIC),
        ("/v1/messages2", OPENAI),
        ("/v1/responses", OPENAI),
        ("/api/chat", OLLAMA),  # no model is named api
        ("/api/pull", OLLAMA),
        ("/api", OLLAMA),
        ("/apis/chat", KAITO),
        ("/tokenize", OPENAI),
        ("/detokenize", OPENAI),
        ("/apply-template", OPENAI),
        ("/tokenizer", KAITO),
    ],
)
def test_a_path_has_the_format_of_its_api(path: str, expected: ErrorFormat) -> None:
    assert error_format_of(path) is expected


def test_every_status_has_a_meaning() -> None:
    assert set(MEANING) == set(STATUS.values())


def test_documented_statuses_are_those_of_the_errors() -> None:
    assert list(documented([ModelUnavailable, UnknownModel])) == [404, 503]
    assert list(documented([InvalidRequest], 422)) == [400, 422]
    (both,) = documented([InvalidRequest], 400).values()
    assert "refused" in both["description"]
    assert "wrong type" in both["description"]


def test_the_document_has_the_statuses_of_each_api(client: TestClient) -> None:
    document: dict[str, Any] = client.get("/openapi.json").json()
    statuses = {
        path: {int(s) for op in ops.values() for s in op["responses"]} for path, ops in document["paths"].items()
    }
    of_errors = set(STATUS.values())
    assert statuses["/chat"] == statuses["/{model}/chat"] == {200, 422, *of_errors}
    assert statuses["/v1/chat/completions"] == statuses["/v1/completions"] == {200, *of_errors}
    assert [path for path, found in statuses.items() if 422 in found] == ["/chat", "/{model}/chat"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
