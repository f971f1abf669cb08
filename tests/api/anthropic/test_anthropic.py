"""Anthropic's API over a real replica and a real socket, called with the official SDK, sync and async."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from fastapi import FastAPI
from starlette.testclient import TestClient

from phi3_serve.api import streams
from phi3_serve.api.anthropic.schema import CountTokensRequest, MessagesRequest
from phi3_serve.api.app import create_app
from phi3_serve.api.given_parameters import is_name
from phi3_serve.api.keys import hash_of
from phi3_serve.api.refused_fields import IGNORED, REFUSED
from phi3_serve.config.app import AppConfig
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.errors import Overloaded
from tests.api.late import Late, post, until
from tests.support import LocalBackend

QUESTION: list[Any] = [{"role": "user", "content": "How to explain Internet for a medieval knight?"}]
GREEDY: dict[str, Any] = {"model": "tested", "temperature": 0, "max_tokens": 24}
BODY: dict[str, Any] = {**GREEDY, "messages": QUESTION}


def asked(messages: list[Any] = QUESTION, **extra: Any) -> dict[str, Any]:
    """A greedy question for the SDK, which has no argument for the temperature any more."""
    return {"model": "tested", "max_tokens": 24, "messages": messages, "extra_body": {"temperature": 0, **extra}}


EVENTS = [
    "message_start",
    "content_block_start",
    "ping",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=server_url, api_key="none", max_retries=0) as sdk:
        yield sdk


def by_chat(client: TestClient, messages: Any = QUESTION, **kwargs: Any) -> str:
    body = {"messages": messages, "generate_kwargs": {"do_sample": False, "max_new_tokens": 24, **kwargs}}
    text: str = client.post("/chat", json=body).json()["Result"]
    return text


def text_of(message: Any) -> str:
    (block,) = message.content
    assert block.type == "text"
    text: str = block.text
    return text


def test_the_answer_is_that_of_chat(sdk: Anthropic, client: TestClient) -> None:
    message = sdk.messages.create(**asked())
    assert text_of(message) == by_chat(client)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "tested")
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    usage = client.post("/v1/chat/completions", json={**GREEDY, "messages": QUESTION}).json()["usage"]
    assert message.usage.input_tokens == usage["prompt_tokens"]
    assert message.usage.output_tokens == 24


def test_a_stream_says_the_same(sdk: Anthropic) -> None:
    plain = sdk.messages.create(**asked())
    with sdk.messages.stream(**asked()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(plain)
    assert (final.stop_reason, final.stop_sequence) == (plain.stop_reason, plain.stop_sequence)
    assert (final.usage.input_tokens, final.usage.output_tokens) == (plain.usage.input_tokens, 24)
    events = list(sdk.messages.create(**asked(), stream=True))
    assert events[0].type == "message_start"
    assert events[0].message.usage.input_tokens == plain.usage.input_tokens
    assert events[0].message.content == []
    assert events[0].message.stop_reason is None


def test_the_events_have_anthropics_order(client: TestClient) -> None:
    answer = client.post("/v1/messages", json={**BODY, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in answer.text.split("\n\n") if block]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert list(dict.fromkeys(names)) == EVENTS
    assert names[:3] == EVENTS[:3]
    assert names[-3:] == EVENTS[-3:]
    assert [json.loads(data.removeprefix("data: "))["type"] for _, data in events] == names


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}])
def test_streams_of_beams(sdk: Anthropic, beams: dict[str, Any]) -> None:
    beamed = asked(**beams, no_repeat_ngram_size=2)
    with sdk.messages.stream(**beamed) as stream:
        assert stream.get_final_text() == text_of(sdk.messages.create(**beamed))


def test_the_async_sdk(server_url: str, client: TestClient) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncAnthropic(base_url=server_url, api_key="none", max_retries=0) as sdk:
            plain = text_of(await sdk.messages.create(**asked()))
            async with sdk.messages.stream(**asked()) as stream:
                return plain, "".join([text async for text in stream.text_stream])

    assert asyncio.run(ask()) == (by_chat(client), by_chat(client))


def test_the_system_prompt_and_blocks(sdk: Anthropic, client: TestClient) -> None:
    mark: Any = {"cache_control": {"type": "ephemeral"}}
    blocks: Any = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind.", **mark}]
    expected = by_chat(client, [{"role": "system", "content": "Be kind."}, *QUESTION])
    for system in ("Be kind.", blocks):
        assert text_of(sdk.messages.create(**asked(), system=system)) == expected
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"], **mark}]}]
    assert text_of(sdk.messages.create(**asked(parts))) == by_chat(client)
    earlier = sdk.messages.create(**asked())
    turns: Any = [
        *QUESTION,
        {"role": "assistant", "content": earlier.content},
        {"role": "user", "content": "And then?"},
    ]
    as_text = [*QUESTION, {"role": "assistant", "content": text_of(earlier)}, {"role": "user", "content": "And then?"}]
    assert text_of(sdk.messages.create(**asked(turns))) == by_chat(client, as_text)


def test_an_answer_continues_what_the_assistant_has_begun(sdk: Anthropic, client: TestClient) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "The castles send"}]
    fields = {"model": "tested", "messages": begun, "temperature": 0, "max_tokens": 24, "continue_final_message": True}
    expected = client.post("/v1/chat/completions", json={**fields, "add_generation_prompt": False}).json()
    message = sdk.messages.create(**asked(begun))
    assert text_of(message) == expected["choices"][0]["message"]["content"]
    assert message.usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert sdk.messages.count_tokens(model="tested", messages=begun).input_tokens == message.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(sdk: Anthropic, client: TestClient, stream: bool) -> None:
    whole = by_chat(client)
    stop = whole[12:15]
    stopped: Any = {**asked(), "stop_sequences": ["never said", stop]}
    if stream:
        with sdk.messages.stream(**stopped) as streamed:
            message: Any = streamed.get_final_message()
    else:
        message = sdk.messages.create(**stopped)
    assert text_of(message) == whole[: whole.index(stop)]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


def test_an_end_of_the_turn(sdk: Anthropic, client: TestClient) -> None:
    first = client.post(
        "/chat",
        json={
            "messages": QUESTION,
            "generate_kwargs": {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True},
        },
    ).json()
    last_id = first["Details"]["sequences"][0]["token_ids"][-1]
    message = sdk.messages.create(**asked(generate_kwargs={"eos_token_id": last_id}))
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens <= 5


def test_parameters(sdk: Anthropic, client: TestClient) -> None:
    first = sdk.messages.create(**asked(temperature=1, top_k=7, top_p=0.9, seed=5))
    kwargs = {"do_sample": True, "temperature": 1.0, "top_k": 7, "top_p": 0.9, "seed": 5}
    assert text_of(first) == by_chat(client, **kwargs)
    default = sdk.messages.create(
        model="tested", max_tokens=24, messages=QUESTION, extra_body={"generate_kwargs": {"seed": 5}}
    )
    assert text_of(default) == by_chat(client, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, seed=5)
    ignored: Any = {"metadata": {"user_id": "x"}, "service_tier": "standard_only", "thinking": {"type": "disabled"}}
    assert text_of(sdk.messages.create(**asked(), **ignored)) == by_chat(client)
    warned = sdk.messages.create(**asked(min_new_tokens=99))
    assert warned.model_extra is not None
    assert "`min_new_tokens` asks for at least" in warned.model_extra["warnings"][0]


def test_tokens_are_counted(sdk: Anthropic) -> None:
    for system in ("Be kind.", anthropic.omit):
        counted = sdk.messages.count_tokens(model="tested", messages=QUESTION, system=system)
        answered = sdk.messages.create(**asked(), system=system)
        assert counted.input_tokens == answered.usage.input_tokens


IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": True}, "max_tokens: `max_tokens` does not take true or false"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0: Pictures are not offered"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "`thinking` is not accepted"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "`output_config.format` of type json_schema needs `schema`"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}}, "`output_config.format` cannot be compiled at #"),
        ({"output_config": {"effort": "low"}}, "output_config.effort: "),
        ({"output_config": {"speed": 1}}, "output_config.speed: "),
        ({"stop_sequence": ["x"]}, "did you mean `stop_sequences`"),
        ({"stop_sequences": ["x" * 300]}, "stop_sequences"),
        ({"temperature": -1}, "temperature: "),
        ({"n": 2}, "`n` must be 1"),
        ({"top_logprobs": 2}, "`top_logprobs` is not accepted"),
        ({"generate_kwargs": {"max_new_tokens": 5}}, "`max_tokens` and `generate_kwargs.max_new_tokens`"),
        ({"max_tokens": 10**6, "min_length": 4}, None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(client: TestClient, fields: dict[str, Any], message: str | None) -> None:
    answer = client.post(
        "/v1/messages",
        content=json.dumps({**BODY, **fields, **({"max_time": 0.2} if message is None else {})}),
        headers={"Content-Type": "application/json"},
    )
    if message is None:  # an answer may fill the context
        assert answer.status_code == 200, answer.text
        return
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert message in answer.json()["error"]["message"]


def test_a_prompt_beyond_the_context_names_the_messages(client: TestClient) -> None:
    answer = client.post("/v1/messages", json={**BODY, "messages": [{"role": "user", "content": "word " * 4000}]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "context" in answer.json()["error"]["message"]


def test_each_error_has_its_class(
    sdk: Anthropic, backend: LocalBackend, config: AppConfig, serve_app: Callable[[FastAPI], str]
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="did you mean tested") as unknown:
        sdk.messages.create(**{**asked(), "model": "tasted"})
    body: Any = unknown.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        sdk.messages.create(**asked(temperature=-1))
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.batches.list()

    class Full(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            raise Overloaded("The queue is full.", 5)
            yield

    config = AppConfig.model_validate({**config.model_dump(), "auth": {"key_hashes": [hash_of("k")]}})
    url = serve_app(create_app(Full(backend.replica), config))
    with (
        Anthropic(base_url=url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError, match="x-api-key"),
    ):
        stranger.messages.create(**asked())
    for given in ({"api_key": "k"}, {"auth_token": "k"}):
        with Anthropic(base_url=url, max_retries=0, **given) as known:  # type: ignore[arg-type]
            for stream in (False, True):
                with pytest.raises(anthropic.RateLimitError, match="The queue is full") as full:
                    known.messages.create(**asked(), stream=stream)
                assert full.value.response.headers["retry-after"] == "5"
            assert known.messages.count_tokens(model="tested", messages=QUESTION).input_tokens > 0


def test_both_headers_of_a_key(backend: LocalBackend, config: AppConfig) -> None:
    config = AppConfig.model_validate({**config.model_dump(), "auth": {"key_hashes": [hash_of("k")]}})
    with TestClient(create_app(backend, config)) as client:
        for headers in (
            {"x-api-key": "k"},
            {"Authorization": "Bearer x", "x-api-key": "k"},
            {"Authorization": "Bearer k", "x-api-key": "x"},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 200
        for headers in ({"x-api-key": "x"}, {"x-api-key": ""}, {"x-api-key": "Bearer k"}, {}):
            assert client.get("/v1/models", headers=headers).status_code == 401


def test_no_field_of_the_sdk_is_unknown(sdk: Anthropic) -> None:
    of_call = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "betas"}
    known = {*REFUSED, *IGNORED}
    for method, schema in (
        (sdk.messages.create, MessagesRequest),
        (sdk.messages.count_tokens, CountTokensRequest),
    ):
        names = set(signature(method).parameters) - of_call
        assert not {name for name in names - known - set(schema.model_fields) if not is_name(name)}


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
def test_the_sdk_reads_over_pings_in_a_silence(late: Late, late_url: str, client: TestClient) -> None:
    late.go_on_after(3)
    with httpx2.stream("POST", f"{late_url}/v1/messages", json={**BODY, "stream": True}) as answer:
        events = "".join(answer.iter_text()).split("\n\n")
    assert events[:3] == ['event: ping\ndata: {"type": "ping"}'] * 3
    assert sum(event.startswith("event: message_start") for event in events) == 1
    late.go_on_after(3)
    with Anthropic(base_url=late_url, api_key="none", max_retries=0) as sdk, sdk.messages.stream(**asked()) as stream:
        assert stream.get_final_text() == by_chat(client)


def test_a_late_error_is_an_event(late: Late, late_url: str) -> None:
    late.error = Overloaded("The request waited in the queue.", 5)
    late.go_on_after(1)
    with (
        Anthropic(base_url=late_url, api_key="none", max_retries=0) as sdk,
        pytest.raises(anthropic.APIStatusError, match="waited in the queue"),
    ):
        list(sdk.messages.create(**asked(), stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_work(late: Late, late_url: str, stream: bool) -> None:
    connection = post(late_url, "/v1/messages", {**BODY, "stream": stream})
    until(lambda: late.num_inside == 1)
    time.sleep(0.2)
    connection.close()
    until(lambda: late.num_inside == 0)
