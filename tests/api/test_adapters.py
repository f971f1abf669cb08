"""Adapters by name in every API, over a real replica with adapters of PEFT."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import ollama
import pytest
from fastapi import FastAPI
from openai import NotFoundError, OpenAI
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.ollama.models import served_models
from phi3_serve.config.app import AppConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.adapter import OfferedAdapter
from phi3_serve.core.variant_state import VariantState
from phi3_serve.observability.request_log import as_text, request_log
from tests.oracle.adapters import save_adapter
from tests.support import LocalBackend, engine_of, local_replica

QUESTION = [{"role": "user", "content": "How to explain Internet for a medieval knight?"}]
TURN = "<|user|>\nHow to explain Internet for a medieval knight?<|end|>\n<|assistant|>\n"
CHAT: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 16}
KAITO: dict[str, Any] = {"messages": QUESTION, "generate_kwargs": {"do_sample": False, "max_new_tokens": 16}}


@pytest.fixture(scope="module")
def places(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(directory / name, checkpoint, seed=n) for n, name in enumerate(("poet", "pirate"))}


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.log"


@pytest.fixture(scope="module")
def app(checkpoint: Path, places: Mapping[str, Path], log_file: Path) -> Iterator[FastAPI]:
    offered = [{"name": name, "source": str(place)} for name, place in places.items()]
    replica = local_replica("tested", str(checkpoint), max_waiting=64)
    replica.reconfigure({"adapters": offered})
    model = {"name": "tested", "source": str(checkpoint), "device": "cpu"}
    merged = {"name": "tone", "source": "org/tone", "strength": 0.5, "always": True}
    config = AppConfig.model_validate({"models": [{**model, "adapters": [*offered, merged]}]})
    log = request_log("json", log_file)
    assert log is not None
    yield create_app(LocalBackend(replica), config, sinks=[log])
    engine_of(replica).close()


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def url(app: FastAPI, serve_app: Any) -> str:
    url: str = serve_app(app)
    return url


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def answer(client: TestClient, **more: Any) -> str:
    reply = client.post("/v1/chat/completions", json={"model": "tested", **CHAT, **more})
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


@pytest.fixture(scope="module")
def poet(client: TestClient) -> str:
    text = answer(client, model="tested:poet")
    assert text != answer(client)
    return text


def test_openai(sdk: OpenAI, poet: str) -> None:
    asked: Any = CHAT
    plain = sdk.chat.completions.create(model="tested:poet", **asked)
    assert (plain.model, plain.choices[0].message.content) == ("tested:poet", poet)
    stream = sdk.chat.completions.create(model="tested:poet", stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == poet
    by_field = sdk.chat.completions.create(model="tested", extra_body={"adapters": [{"name": "poet"}]}, **asked)
    assert (by_field.model, by_field.choices[0].message.content) == ("tested", poet)
    response = sdk.responses.create(
        model="tested:poet", input=QUESTION[0]["content"], temperature=0, max_output_tokens=16
    )
    assert (response.model, response.output_text) == ("tested:poet", poet)


def test_a_completion_and_a_plain_prompt(client: TestClient, sdk: OpenAI) -> None:
    by_kaito = {"prompt": TURN, "return_full_text": False, "generate_kwargs": KAITO["generate_kwargs"]}
    of_kaito = client.post("/tested:pirate/chat", json=by_kaito).json()["Result"]
    completion = sdk.completions.create(model="tested:pirate", prompt=TURN, temperature=0, max_tokens=16)
    assert completion.choices[0].text == of_kaito
    assert of_kaito != client.post("/chat", json=by_kaito).json()["Result"]


def test_kaito(client: TestClient, poet: str) -> None:
    for path, more in (
        ("/tested:poet/chat", {}),
        ("/chat", {"model": "tested:poet"}),
        ("/chat", {"adapters": [{"name": "poet"}]}),
        ("/chat", {"adapters": [{"name": "poet", "strength": 1}], "stream": True}),
    ):
        reply = client.post(path, json={**KAITO, **more})
        assert reply.status_code == 200, reply.text
        found = reply.json() if not more.get("stream") else json.loads(reply.text.split("data: ")[-2])
        assert found["Result"] == poet


def test_anthropic(url: str, poet: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="none") as sdk:
        asked: Any = {"model": "tested:poet", "messages": QUESTION}
        message = sdk.messages.create(max_tokens=16, extra_body={"temperature": 0}, **asked)
        block = message.content[0]
        assert isinstance(block, anthropic.types.TextBlock)
        assert (message.model, block.text) == ("tested:poet", poet)
        assert sdk.messages.count_tokens(**asked).input_tokens == message.usage.input_tokens


@pytest.mark.parametrize("name", ["tested:poet", "tested:poet:latest"])
def test_ollama(url: str, client: TestClient, poet: str, name: str) -> None:
    options = {"temperature": 0, "num_predict": 16, "repeat_penalty": 1}
    with ollama.Client(host=url) as sdk:
        assert sdk.chat(model=name, messages=QUESTION, options=options).message.content == poet
        plain = sdk.chat(model="tested:latest", messages=QUESTION, options=options).message.content
        assert plain == answer(client) != poet
        shown = sdk.show(name).details
        assert shown is not None
        assert shown.parent_model == "tested:latest"
        with pytest.raises(ollama.ResponseError, match="names the adapter pirat, which tested does not offer"):
            sdk.show("tested:pirat")
        assert sdk.generate(model=name, prompt="").done_reason == "load"
        listed = {model.model: model.details for model in sdk.list().models}
    assert list(listed) == ["tested:latest", "tested:poet", "tested:pirate"]
    assert [details.parent_model for details in listed.values() if details] == ["", "tested:latest", "tested:latest"]


def test_ollama_loads_no_adapter_that_is_not_offered(client: TestClient) -> None:
    def load(path: str, **more: Any) -> Any:
        return client.post(path, json={"model": "tested", "stream": False, **more})

    for path in ("/api/generate", "/api/chat"):
        assert load(path, adapters=[{"name": "poet"}]).json()["done_reason"] == "load"
        refused = load(path, adapters=[{"name": "nope"}])
        assert (refused.status_code, "names the adapter nope" in refused.json()["error"]) == (404, True)


def test_the_digest_of_ollama_is_of_a_revision(checkpoint: Path) -> None:
    def digests(revision: str) -> list[str]:
        adapter = {"name": "poet", "source": "org/poet", "revision": revision}
        config = ModelConfig(name="tested", source=str(checkpoint), device="cpu", adapters=[adapter])  # type: ignore[arg-type]
        return [model.digest for model in served_models(config, VariantState("ready"), "")]

    (model, first), (same_model, second) = digests("v1"), digests("v2")
    assert model == same_model
    assert first != second


def test_several_adapters_add_up_in_any_order(client: TestClient, poet: str) -> None:
    weak = {"name": "pirate", "strength": 0.4}
    both = answer(client, adapters=[weak, {"name": "poet"}])
    assert both == answer(client, model="tested:poet", adapters=[weak])
    assert both not in (poet, answer(client), answer(client, model="tested:pirate"))
    assert poet == answer(client, model="tested:poet", adapters=[{**weak, "strength": 0}])


def test_models_are_listed_with_their_adapters(client: TestClient, sdk: OpenAI, places: Mapping[str, Path]) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(one["id"], one["root"], one["parent"]) for one in listed] == [
        ("tested", "tested", None),
        ("tested:poet", "tested:poet", "tested"),  # a path of the server is not shown
        ("tested:pirate", "tested:pirate", "tested"),
    ]
    assert str(places["poet"]) not in json.dumps(listed)
    assert {one["state"] for one in listed} == {"ready"}
    assert sdk.models.retrieve("tested:poet").id == "tested:poet"
    with pytest.raises(NotFoundError, match="names the adapter pirat, which tested does not offer; did you mean"):
        sdk.models.retrieve("tested:pirat")


def test_what_replicas_announce_comes_before_the_config(checkpoint: Path) -> None:
    adapters = [{"name": "old", "source": "org/old"}]
    model = {"name": "tested", "source": str(checkpoint), "device": "cpu", "adapters": adapters}
    backend = LocalBackend(local_replica("tested", str(checkpoint)))
    client = TestClient(create_app(backend, AppConfig.model_validate({"models": [model]})))

    def listed() -> list[str]:
        return [one["id"] for one in client.get("/v1/models").json()["data"]]

    assert listed() == ["tested", "tested:old"]
    backend.state_of["tested"] = VariantState("ready", adapters=(OfferedAdapter("new", "org/new", 0.5),))
    assert listed() == ["tested", "tested:new"]
    assert client.get("/v1/models/tested:new").json()["root"] == "org/new"
    assert client.get("/ready").json()["models"]["tested"]["adapters"] == {"new": 0.5}
    backend.state_of["tested"] = VariantState("scaled_to_zero")
    assert listed() == ["tested", "tested:old"]
    engine_of(backend.replica).close()


def test_ready_shows_what_is_offered_and_what_is_merged(client: TestClient) -> None:
    of_model = client.get("/ready").json()["models"]["tested"]
    assert of_model["adapters"] == {"poet": 1.0, "pirate": 1.0}
    assert of_model["merged_adapters"] == {"tone": 0.5}


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (
            {"model": "tested:poit"},
            404,
            "model",
            "`model` names the adapter poit, which tested does not offer; did you mean poet?",
        ),
        (
            {"adapters": [{"name": "poet"}, {"name": "zzz"}]},
            404,
            "adapters.1.name",
            "`adapters.1.name` names the adapter zzz, which tested does not offer; offered are poet, pirate.",
        ),
        (
            {"model": f"tested:{'x' * 129}"},
            404,
            "model",
            f"Model tested:{'x' * 121} is not served here; served are tested.",
        ),
        ({"model": "tasted:poet"}, 404, "model", "Model tasted:poet is not served here; served are tested."),
        (
            {"adapters": [{"name": "poet"}, {"name": "poet"}]},
            400,
            "adapters.1.name",
            "`adapters.1.name` names the adapter poet, as `adapters.0.name` does; name it once.",
        ),
        (
            {"model": "tested:poet", "adapters": [{"name": "poet"}]},
            400,
            "adapters.0.name",
            "`adapters.0.name` names the adapter poet, as `model` does; name it once.",
        ),
        (
            {"model": "tested:poet", "adapters": [{"name": f"a{n}"} for n in range(8)]},
            400,
            "adapters",
            "`adapters` and `model` name 9 adapters; the most is 8.",
        ),
        (
            {"adapters": [{"name": f"a{n}"} for n in range(9)]},
            400,
            "adapters",
            "adapters: List should have at most 8 items, not 9; allowed: list (0 to 8 items) of RequestAdapter",
        ),
        (
            {"adapters": [{"name": "poet", "strength": 10.5}]},
            400,
            "adapters.0.strength",
            "adapters.0.strength: Input should be less than or equal to 10; allowed: number, at least 0, at most 10",
        ),
        (
            {"adapters": [{"name": "poet", "strength": True}]},
            400,
            "adapters.0.strength",
            "adapters.0.strength: `strength` does not take true or false; allowed: number, at least 0, at most 10",
        ),
        (
            {"adapters": [{"name": "poet", "scale": 1}]},
            400,
            "adapters.0.scale",
            "adapters.0.scale: Extra inputs are not permitted",
        ),
        (
            {"adapters": "poet"},
            400,
            "adapters",
            "adapters: Input should be a valid list; allowed: list (0 to 8 items) of RequestAdapter",
        ),
        (
            {"lora_path": "poet"},
            400,
            "lora_path",
            "`lora_path` is not accepted: send adapters, a list of objects with name and strength.",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_mistake_has_one_line(
    client: TestClient, body: dict[str, Any], status: int, param: str, message: str, stream: bool
) -> None:
    reply = client.post("/v1/chat/completions", json={"model": "tested", "stream": stream, **CHAT, **body})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["message"]) == (status, param, message)


def test_ranks_that_are_too_large_together_are_a_mistake_of_the_field(checkpoint: Path, tmp_path: Path) -> None:
    place = save_adapter(tmp_path, checkpoint, seed=0, rank=130)
    replica = local_replica("tested", str(checkpoint))
    replica.reconfigure({"adapters": [{"name": name, "source": str(place)} for name in ("wide", "wider")]})
    model = {"name": "tested", "source": str(checkpoint), "device": "cpu"}
    client = TestClient(create_app(LocalBackend(replica), AppConfig.model_validate({"models": [model]})))
    body = {"model": "tested", **CHAT, "adapters": [{"name": "wide"}, {"name": "wider"}]}
    reply = client.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["message"]) == (
        400,
        "adapters",
        "`adapters` have ranks of 260 together; at most 256 are allowed in one request.",
    )
    engine_of(replica).close()


def test_the_tokenizer_knows_the_names(client: TestClient) -> None:
    plain = client.post("/tokenize", json={"model": "tested", "prompt": "a knight"}).json()
    assert client.post("/tokenize", json={"model": "tested:poet", "prompt": "a knight"}).json() == plain
    refused = client.post("/tokenize", json={"model": "tested:poit", "prompt": "a knight"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")


def test_the_log_of_requests_has_the_adapters(client: TestClient, log_file: Path) -> None:
    answer(client, model="tested:poet", adapters=[{"name": "pirate", "strength": 0.4}])
    answer(client)
    *_, with_adapters, without = map(json.loads, log_file.read_text().splitlines())
    assert with_adapters["model"] == "tested"
    assert with_adapters["adapters"] == [{"name": "poet"}, {"name": "pirate", "strength": 0.4}]
    assert "adapters" not in without
    assert "tested+poet+pirate" in as_text(with_adapters)
