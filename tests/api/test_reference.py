"""The description of the API: what is written is what the models say, and its examples run."""

import json
import re
import runpy
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from phi3_serve.api.kaito.schema import ChatRequest
from phi3_serve.api.openai.schema import ChatCompletionRequest, CompletionRequest
from phi3_serve.api.schema_words import takes
from phi3_serve.parameters import NAMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_document_is_what_the_models_say(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("phi3_serve.api", run_name="__main__")
    assert DOCUMENT.read_text(encoding="utf-8") == capsys.readouterr().out, "python -m phi3_serve.api > docs/api.md"


def test_every_endpoint_is_in_the_contents_and_kaitos_comes_first() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    headings = re.findall(r"^## ((?:GET|POST|DELETE) .*)$", text, re.M)
    assert headings[0] == "POST /chat"
    linked = re.findall(r"\[((?:GET|POST|DELETE) .*?)\]\(#([\w-]+)\)", text)
    assert [title for title, _ in linked] == headings
    assert len({anchor for _, anchor in linked}) == len(headings)


def test_every_field_has_its_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert not [name for name, meaning in rows if not meaning.strip()]
    fields = {*ChatRequest.model_fields, *ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert {*NAMES, *fields} <= {name for name, _ in rows}


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page()
    page.feed(answer.text)
    assert "script" not in page.tags
    assert set(page.links) - {"openapi.json"} == {f"#{name}" for name in page.ids} & set(page.links)
    for name in (*NAMES, "POST /chat", "POST /v1/chat/completions", "GET /v1/models"):
        assert name in page.text, name


@pytest.fixture(scope="module")
def tiny(make_tiny_app: Callable[[], FastAPI]) -> Iterator[TestClient]:
    with TestClient(make_tiny_app()) as client:
        yield client


@pytest.mark.parametrize("example", re.findall(r"```bash\n(curl .*?)\n```", DOCUMENT.read_text(), re.S))
def test_its_examples_are_answered(tiny: TestClient, example: str) -> None:
    found = re.fullmatch(
        r"curl http://127\.0\.0\.1:8000(\S+) -H \"Content-Type: application/json\" -d '(.*)'", example, re.S
    )
    assert found is not None
    assert tiny.post(found[1], json=json.loads(found[2])).status_code == 200


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}, "whole number, at least 0"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number, above 0, at most 1"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}, "list (1 to 3 items) of text"),
        ({"type": "integer", "exclusiveMaximum": float(2**63)}, "whole number, below 9223372036854775808"),
        ({"type": "number", "minimum": 1e-6}, "number, at least 1e-06"),
        ({"const": "never"}, '`"never"`'),
        ({"$ref": "#/components/schemas/TextPart"}, "TextPart"),
        ({}, "anything"),
    ],
)
def test_words(schema: dict[str, object], words: str) -> None:
    assert takes(schema) == words
