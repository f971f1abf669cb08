"""ollama's API over a real replica and a real socket, called with ollama's official client, sync and async."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ollama
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from phi3_serve.api import streams
from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.api.ollama.requests import DEFAULTS
from phi3_serve.config.app import AppConfig
from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import ModelUnavailable, Overloaded
from tests.api.late import Late, post, until
from tests.support import ENDLESS, LocalBackend

QUESTION = [{"role": "user", "content": "How to explain Internet for a medieval knight?"}]
PROMPT = "<|user|> How to explain Internet for a medieval knight?<|end|><|assistant|>"
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 24, "repeat_penalty": 1}
CHAT: dict[str, Any] = {"model": "tested", "messages": QUESTION, "options": GREEDY}
GENERATE: dict[str, Any] = {"model": "tested", "prompt": QUESTION[0]["content"], "options": GREEDY}
PATHS = {"/api/chat": CHAT, "/api/generate": GENERATE, "/api/show": {"model": "tested"}}
DURATIONS = ("load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=server_url) as sdk:
        yield sdk


def by_chat(client: TestClient, **kwargs: Any) -> str:
    """The same question by KAITO's endpoint."""
    body = {"messages": QUESTION, "generate_kwargs": {"do_sample": False, "max_new_tokens": 24, **kwargs}}
    text: str = client.post("/chat", json=body).json()["Result"]
    return text


def refused(client: TestClient, path: str, body: dict[str, Any]) -> str:
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    message: str = answer.json()["error"]
    return message


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_that_of_kaitos_chat(sdk: ollama.Client, client: TestClient, stream: bool) -> None:
    expected = by_chat(client)
    if stream:
        parts = list(sdk.chat(**CHAT, stream=True))
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert {part.message.role for part in parts} == {"assistant"}
        text, last = "".join(part.message.content or "" for part in parts), parts[-1]
        assert last.message.content == ""
    else:
        last = sdk.chat(**CHAT)
        text = last.message.content or ""
    assert text == expected
    assert (last.model, last.done, last.done_reason, last.eval_count) == ("tested", True, "length", 24)
    usage = client.post("/v1/chat/completions", json={"model": "tested", "messages": QUESTION, "max_tokens": 1}).json()
    assert last.prompt_eval_count == usage["usage"]["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_generate_answers_one_question(sdk: ollama.Client, client: TestClient, stream: bool) -> None:
    expected = sdk.chat(model="tested", messages=[{"role": "system", "content": "Be kind."}, *QUESTION], options=GREEDY)
    if stream:
        text = "".join(part.response or "" for part in sdk.generate(**GENERATE, system="Be kind.", stream=True))
    else:
        text = sdk.generate(**GENERATE, system="Be kind.").response or ""
    assert text == expected.message.content
    raw = sdk.generate(model="tested", prompt=PROMPT, raw=True, options=GREEDY)
    kwargs = {"do_sample": False, "max_new_tokens": 24}
    body = {"prompt": PROMPT, "return_full_text": False, "generate_kwargs": kwargs}
    assert raw.response == client.post("/chat", json=body).json()["Result"]
    assert raw.context is None


def test_the_async_client(server_url: str, client: TestClient) -> None:
    async def ask() -> tuple[str | None, str]:
        sdk = ollama.AsyncClient(host=server_url)
        async with sdk._client:
            plain = await sdk.chat(**CHAT)
            stream = await sdk.chat(**CHAT, stream=True)
            return plain.message.content, "".join([part.message.content or "" async for part in stream])

    assert asyncio.run(ask()) == (by_chat(client), by_chat(client))


def test_the_times_are_real(sdk: ollama.Client) -> None:
    options = {**GREEDY, **ENDLESS, "num_predict": 400}
    began = time.monotonic()
    *_, last = sdk.chat(model="tested", messages=QUESTION, options=options, stream=True)
    took_ns = (time.monotonic() - began) * 1e9
    parts = [getattr(last, name) for name in DURATIONS]
    assert all(part > 0 for part in parts)
    assert sum(parts) == last.total_duration
    assert last.total_duration is not None
    assert 0.5 * took_ns < last.total_duration < took_ns
    assert last.eval_duration is not None
    assert last.prompt_eval_duration is not None
    assert last.eval_duration > 10 * last.prompt_eval_duration  # 400 steps beside one


def test_what_comes_before_the_engine_counts_as_loading(backend: LocalBackend) -> None:
    class Slow(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            await asyncio.sleep(0.3)
            async for event in super().generate(request):
                yield event

    with TestClient(
        create_app(Slow(backend.replica), AppConfig.model_validate({"models": [{"name": "tested", "source": "x"}]}))
    ) as client:
        answer = client.post("/api/chat", json={**CHAT, "stream": False}).json()
    assert answer["load_duration"] > 0.3e9 > answer["prompt_eval_duration"] + answer["eval_duration"]


def test_the_defaults_are_ollamas(backend: LocalBackend, config: AppConfig) -> None:
    asked: list[GenerationRequest] = []

    class Listening(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            asked.append(request)
            async for event in super().generate(request):
                yield event

    with TestClient(create_app(Listening(backend.replica), config)) as client:
        for options in ({}, {"temperature": 0.5}, {"num_beams": 2}, {"temperature": 0}, None):
            body = {**CHAT, "options": options, "max_time": 0.2, "num_predict": 2}
            assert client.post("/api/chat", json=body).status_code == 200
    assert {request.api_defaults for request in asked} == {DEFAULTS}
    assert (DEFAULTS.temperature, DEFAULTS.top_k, DEFAULTS.top_p) == (0.8, 40, 0.9)
    assert (DEFAULTS.repetition_penalty, DEFAULTS.repeat_last_n) == (1.1, 64)
    assert [r.parameters.do_sample for r in asked] == [None, None, False, False, None]
    assert [r.parameters.temperature for r in asked] == [None, 0.5, None, None, None]
    assert [r.stream for r in asked] == [True] * 5  # ollama streams unless the client says otherwise


@pytest.mark.parametrize(
    ("options", "kwargs"),
    [
        ({"top_k": 1, "temperature": 0.7, "seed": 3}, {}),
        ({"stop": ["e"], "temperature": 0}, {"stop": ["e"]}),
        ({"temperature": 0, "repeat_penalty": 1.3}, {"repetition_penalty": 1.3, "repeat_last_n": 64}),
        ({"temperature": 0, "repeat_penalty": 1.3, "repeat_last_n": 5}, {"repetition_penalty": 1.3, "repeat_last_n": 5}),
        ({"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 1}, {"presence_penalty": 1.5, "frequency_penalty": 1}),
        ({"num_beams": 3, "no_repeat_ngram_size": 2}, {"num_beams": 3, "no_repeat_ngram_size": 2}),
        ({"temperature": 0, "min_p": 0.1, "top_p": 0.5, "typical_p": 0.5, "tfs_z": 1.0, "mirostat": 0, "mirostat_tau": 5.0,
          "num_keep": 0, "penalize_newline": True, "numa": False, "num_batch": 2, "num_gpu": 1, "main_gpu": 0, "f16_kv": True,
          "low_vram": False, "vocab_only": False, "use_mmap": True, "use_mlock": False, "num_thread": 8, "num_ctx": 1024}, {}),
    ],
)  # fmt: skip
def test_options_are_parameters(sdk: ollama.Client, client: TestClient, options: Any, kwargs: Any) -> None:
    answer = sdk.chat(model="tested", messages=QUESTION, options={"repeat_penalty": 1, "num_predict": 24, **options})
    assert answer.message.content == by_chat(client, **kwargs)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(sdk: ollama.Client, client: TestClient, stream: bool) -> None:
    """They are those of OpenAI's chat."""
    body = {"model": "tested", "messages": QUESTION, "temperature": 0, "max_tokens": 24, "logprobs": True}
    expected = client.post("/v1/chat/completions", json={**body, "top_logprobs": 2}).json()["choices"][0]["logprobs"]
    for method, asked in ((sdk.chat, CHAT), (sdk.generate, GENERATE)):
        call: Any = method
        if stream:
            parts = list(call(**asked, logprobs=True, top_logprobs=2, stream=True))
            assert sum(bool(part.logprobs) for part in parts) > 1
            found = [token for part in parts for token in part.logprobs or ()]
        else:
            found = call(**asked, logprobs=True, top_logprobs=2).logprobs
        assert [(t.token, t.logprob) for t in found] == [(t["token"], t["logprob"]) for t in expected["content"]]
        for token, of_token in zip(found, expected["content"], strict=True):
            assert [(t.token, t.logprob) for t in token.top_logprobs] == [
                (t["token"], t["logprob"]) for t in of_token["top_logprobs"]
            ]
    alone = client.post("/api/chat", json={**CHAT, "stream": False, "logprobs": True}).json()["logprobs"]
    assert [set(token) for token in alone] == [{"token", "logprob", "bytes"}] * 24
    assert "logprobs" not in client.post("/api/chat", json={**CHAT, "stream": False}).json()
    assert refused(client, "/api/chat", {**CHAT, "top_logprobs": 2}) == "`top_logprobs` needs `logprobs` to be true."
    message = refused(client, "/api/chat", {**CHAT, "logprobs": True, "options": {"num_beams": 2}})
    assert message.startswith("`logprobs` is not offered with beam search (`num_beams`)")


def test_the_context_can_be_smaller(sdk: ollama.Client, client: TestClient) -> None:
    options = {"temperature": 0, "num_ctx": 40, **ENDLESS}
    for length in ({}, {"num_predict": -1}):
        last = sdk.chat(model="tested", messages=QUESTION, options={**options, **length})
        assert last.prompt_eval_count is not None
        assert last.eval_count is not None
        assert (last.done_reason, last.prompt_eval_count + last.eval_count) == ("length", 40)
    message = refused(client, "/api/chat", {**CHAT, "options": {"num_ctx": 5}})
    assert "`num_ctx` is set to 5" in message


def test_parameters_may_stand_beside_the_messages(client: TestClient) -> None:
    body = {**CHAT, "options": None, "temperature": 0, "num_predict": 24, "repetition_penalty": 1, "stream": False}
    assert client.post("/api/chat", json=body).json()["message"]["content"] == by_chat(client)


def test_nothing_to_answer_starts_the_model(sdk: ollama.Client, backend: LocalBackend, config: AppConfig) -> None:
    assert sdk.generate(model="tested").done_reason == sdk.chat(model="tested", messages=[]).done_reason == "load"
    assert [part.done_reason for part in sdk.generate(model="tested", keep_alive="5m", stream=True)] == ["load"]

    class Asleep(LocalBackend):
        async def tokenize(self, request: Any) -> Any:
            raise ModelUnavailable("Model tested was scaled to zero and is starting now.", 10)

    with TestClient(create_app(Asleep(backend.replica), config)) as client:
        answer = client.post("/api/generate", json={"model": "tested"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
        assert "keep_alive" in refused(client, "/api/generate", {"model": "tested", "keep_alive": 0})


def test_an_answer_has_the_format(client: TestClient) -> None:
    colour = {"colour": {"enum": ["red", "blue"]}}
    schema = {"type": "object", "properties": colour, "required": ["colour"], "additionalProperties": False}
    body = {**PATHS["/api/chat"], "options": {**GREEDY, "num_predict": 60}, "format": schema, "stream": False}
    answer = client.post("/api/chat", json=body).json()
    assert answer["done_reason"] == "stop"
    assert json.loads(answer["message"]["content"])["colour"] in ("red", "blue")


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/api/chat", {"model": None}, "model"),
        ("/api/chat", {"format": "xml"}, "format"),
        ("/api/chat", {"format": {"type": "thing"}}, "format"),
        ("/api/chat", {"think": True}, "`think` is not accepted"),
        ("/api/chat", {"mesages": []}, "did you mean `messages`"),
        ("/api/chat", {"options": {"num_predct": 5}}, "did you mean `num_predict`"),
        ("/api/chat", {"options": {"mirostat": 1}}, "`mirostat` is not accepted"),
        ("/api/chat", {"options": {"penalize_newline": False}}, "`penalize_newline` is not accepted"),
        ("/api/chat", {"options": {"num_predict": "many"}}, "options.num_predict: "),
        ("/api/chat", {"options": {"top_k": True}}, "options.top_k: `top_k` does not take true or false"),
        ("/api/chat", {"options": {"top_p": 2}}, "options.top_p: "),
        ("/api/chat", {"options": [1]}, "options: "),
        ("/api/chat", {"options": {"num_return_sequences": 2}}, "`num_return_sequences` must be 1"),
        ("/api/chat", {"options": {"n": 2}}, "`n` must be 1"),
        ("/api/chat", {"options": {"output_scores": True}}, "`output_scores` is not accepted"),
        ("/api/chat", {"options": {"seed": 1}, "seed": 2}, "`seed` and `options.seed`"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "the model reads text only"),
        ("/api/chat", {"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ("/api/generate", {"images": ["aGk="]}, "the model reads text only"),
        ("/api/generate", {"suffix": "x"}, "`suffix` is not accepted"),
        ("/api/generate", {"template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"context": [1, 2]}, "context"),
        ("/api/generate", {"raw": True, "system": "x"}, "`raw` and `system` exclude each other"),
        ("/api/show", {"model": None}, "`model` is missing"),
        ("/api/show", {"modl": "tested"}, "did you mean `model`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(client: TestClient, path: str, fields: dict[str, Any], message: str) -> None:
    options = fields.get("options", GREEDY)
    options = {**GREEDY, **options} if isinstance(options, dict) and "seed" not in options else options
    body = {
        **PATHS[path],
        **({"options": options} if path != "/api/show" else {}),
        **{k: v for k, v in fields.items() if k != "options"},
    }
    assert message in refused(client, path, body)


def test_unknown_models(sdk: ollama.Client) -> None:
    for call in (
        lambda: sdk.chat(**{**CHAT, "model": "tasted"}),
        lambda: list(sdk.chat(**{**CHAT, "model": "tasted"}, stream=True)),
        lambda: sdk.show("tasted"),
    ):
        with pytest.raises(ollama.ResponseError, match="did you mean tested") as refusal:
            call()
        assert refusal.value.status_code == 404
    assert sdk.chat(**{**CHAT, "model": "tested:latest"}).model == "tested:latest"


def test_other_paths_have_ollamas_errors(sdk: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="POST /api/pull is not an endpoint of this server"):
        sdk.pull("tested")


def test_lists_of_models(sdk: ollama.Client, backend: LocalBackend, config: AppConfig) -> None:
    (model,) = sdk.list().models
    assert model.model == "tested:latest"
    assert model.size is not None
    assert model.size > 100_000
    assert model.digest is not None
    assert len(model.digest) == 64
    assert model.details is not None
    assert (model.details.family, model.details.format) == ("phi3", "safetensors")
    (running,) = sdk.ps().models
    assert (running.name, running.context_length, running.size_vram) == ("tested:latest", 2048, 0)
    shown = sdk.show("tested:latest")
    assert shown.modelinfo is not None
    assert shown.modelinfo["phi3.context_length"] == 2048
    assert shown.modelinfo["phi3.block_count"] == 3
    assert shown.capabilities == ["completion", "tools"]
    assert shown.parameters is not None
    assert dict(line.split() for line in shown.parameters.splitlines())["temperature"] == "0.8"

    asleep = LocalBackend(backend.replica)
    asleep.state_of = {"tested": VariantState("scaled_to_zero")}
    with TestClient(create_app(asleep, config)) as client:
        assert client.get("/api/ps").json() == {"models": []}
        assert len(client.get("/api/tags").json()["models"]) == 1
    on_gpu = EngineInfo(
        device="H200",
        compute_capability="9.0",
        dtype="bfloat16",
        weight_dtype="bfloat16",
        quantization="none",
        kv_cache_dtype="float32",
        kernels="cuda",
        replaced_kernels={},
        cache_tokens=1,
        cache_bytes=64,
        weight_bytes=128,
        weight_format="safetensors: BF16",
    )
    asleep.state_of = {"tested": VariantState("ready", engine=on_gpu)}
    with TestClient(create_app(asleep, config)) as client:
        (model,) = client.get("/api/ps").json()["models"]
        assert model["size_vram"] == model["size"] > 0
        assert model["details"]["quantization_level"] == "BF16"
    asleep.state_of = {"tested": VariantState("ready", engine=replace(on_gpu, quantization="int4"))}
    with TestClient(create_app(asleep, config)) as client:
        (model,) = client.get("/api/ps").json()["models"]
        assert model["details"]["quantization_level"] == "INT4"


def test_the_catalogue_has_its_sizes(make_tiny_app: Callable[[], FastAPI]) -> None:
    with TestClient(make_tiny_app()) as client:
        (model,) = client.get("/api/tags").json()["models"]
        assert model["details"]["parameter_size"] == "5.7M"
        assert (
            client.post("/api/show", json={"model": "phi3-tiny"}).json()["model_info"]["phi3.attention.head_count_kv"]
            == 8
        )
        assert client.get("/api/version").json()["version"].split(".") > ["0", "12"]
        assert client.head("/").status_code == 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_what_every_api_does_this_does_too(backend: LocalBackend, config: AppConfig, path: str) -> None:
    class Full(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            raise Overloaded("The queue is full.", 5)
            yield

    config = AppConfig.model_validate({**config.model_dump(), "auth": {"key_hashes": [hash_of("k")]}})
    with TestClient(create_app(Full(backend.replica), config)) as client:
        assert client.post(path, json=PATHS[path]).status_code == 401
        client.headers["Authorization"] = "Bearer k"
        for stream in (False, True):
            answer = client.post(path, json={**PATHS[path], "stream": stream})
            assert (answer.status_code, answer.headers["Retry-After"], answer.json()) == (
                429,
                "5",
                {"error": "The queue is full."},
            )
        figures = client.get("/metrics", headers={"Accept": "text/plain"}).text
        assert 'phi3_serve_requests_total{model_name="tested",outcome="Overloaded"} 2.0' in figures
        assert 'phi3_serve_refusals_total{refused_by="queue"} 2.0' in figures


@pytest.fixture
def late(backend: LocalBackend) -> Late:
    return Late(backend)


@pytest.fixture
def late_url(
    late: Late, config: AppConfig, serve_app: Callable[[FastAPI], str], monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setattr(streams, "STATUS_DEADLINE_S", 0.1)
    monkeypatch.setattr(streams, "KEEP_ALIVE_INTERVAL_S", 0.1)
    late.note_keep_alives(monkeypatch)
    return serve_app(create_app(late, config))


@pytest.mark.thorough
def test_the_client_reads_over_what_keeps_a_stream_alive(late: Late, late_url: str, client: TestClient) -> None:
    late.go_on_after(3)
    connection = post(late_url, "/api/chat", CHAT)
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    first = answer.readline()
    assert first.startswith(b"   ")
    assert json.loads(first)["done"] is False
    connection.close()
    late.go_on_after(3)
    with ollama.Client(host=late_url) as sdk:
        assert "".join(part.message.content or "" for part in sdk.chat(**CHAT, stream=True)) == by_chat(client)


def test_a_late_error_is_the_last_line(late: Late, late_url: str) -> None:
    late.error = Overloaded("The request waited in the queue.", 5)
    late.go_on_after(1)
    with ollama.Client(host=late_url) as sdk, pytest.raises(ollama.ResponseError, match="waited in the queue"):
        list(sdk.chat(**CHAT, stream=True))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_client_that_goes_away_ends_the_work(late: Late, late_url: str, path: str, stream: bool) -> None:
    connection = post(late_url, path, {**PATHS[path], "stream": stream})
    until(lambda: late.num_inside == 1)
    time.sleep(0.2)
    connection.close()
    until(lambda: late.num_inside == 0)
