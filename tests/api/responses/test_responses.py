"""`/v1/responses` over a real replica and a real socket, called with OpenAI's official SDK, sync and async."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI
from starlette.testclient import TestClient

from phi3_serve.api import sse, streams
from phi3_serve.api.app import create_app
from phi3_serve.api.given_parameters import is_name
from phi3_serve.api.refused_fields import IGNORED, REFUSED
from phi3_serve.api.responses.schema import ResponseInputTokensRequest, ResponsesRequest
from phi3_serve.config.app import AppConfig
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.errors import Overloaded
from tests.api.late import Late, post, until
from tests.support import LocalBackend

TEXT = "How to explain Internet for a medieval knight?"
QUESTION = [{"role": "user", "content": TEXT}]
GREEDY: dict[str, Any] = {"model": "tested", "temperature": 0, "max_output_tokens": 24}
BODY: dict[str, Any] = {**GREEDY, "input": TEXT}
EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.done", "response.content_part.done", "response.output_item.done",
    "response.incomplete",
]  # fmt: skip


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def by_chat(client: TestClient, messages: Any = QUESTION, **kwargs: Any) -> str:
    body = {"messages": messages, "generate_kwargs": {"do_sample": False, "max_new_tokens": 24, **kwargs}}
    text: str = client.post("/chat", json=body).json()["Result"]
    return text


def test_the_answer_is_that_of_chat(sdk: OpenAI, client: TestClient) -> None:
    answer = sdk.responses.create(**BODY)
    assert answer.output_text == by_chat(client)
    assert answer.id.startswith("resp_")
    assert (answer.object, answer.model, answer.status, answer.error) == ("response", "tested", "incomplete", None)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert abs(answer.created_at - time.time()) < 60
    (item,) = answer.output
    assert item.type == "message"
    assert (item.role, item.status) == ("assistant", "incomplete")
    assert answer.usage is not None
    usage = client.post("/v1/chat/completions", json={"model": "tested", "messages": QUESTION, "max_tokens": 1}).json()
    assert answer.usage.input_tokens == usage["usage"]["prompt_tokens"]
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (24, answer.usage.input_tokens + 24)
    assert answer.usage.input_tokens_details.cached_tokens == 0


def test_the_answer_repeats_the_settings(sdk: OpenAI) -> None:
    answer = sdk.responses.create(**BODY, instructions="Be kind.", metadata={"a": "b"}, top_p=0.9, store=False)
    assert (answer.instructions, answer.metadata, answer.top_p) == ("Be kind.", {"a": "b"}, 0.9)
    assert (answer.temperature, answer.max_output_tokens, answer.tools) == (0, 24, [])
    assert answer.model_extra is not None
    assert answer.model_extra["store"] is False
    default = sdk.responses.create(model="tested", input=TEXT, extra_body={"max_time": 0.1})
    assert (default.temperature, default.top_p, default.max_output_tokens) == (1, 1, None)
    assert default.model_extra is not None
    assert default.model_extra["store"] is False  # what is not stored is not said to be


def test_an_answer_that_ends_is_completed(sdk: OpenAI, client: TestClient) -> None:
    text = by_chat(client)
    for stream in (False, True):
        asked: Any = {**BODY, "extra_body": {"stop": text[12:15]}}
        if stream:
            with sdk.responses.stream(**asked) as streamed:
                answer: Any = streamed.get_final_response()
        else:
            answer = sdk.responses.create(**asked)
        assert (answer.status, answer.incomplete_details) == ("completed", None)
        assert answer.output_text == text[: text.index(text[12:15])]
        assert answer.output[0].status == "completed"


def test_a_stream_says_the_same_in_openais_order(sdk: OpenAI) -> None:
    plain = sdk.responses.create(**BODY)
    events: list[Any] = list(sdk.responses.create(**BODY, stream=True))
    assert list(dict.fromkeys(event.type for event in events)) == EVENTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [e.response.status for e in events if e.type in EVENTS[:2]] == ["in_progress"] * 2
    assert events[0].response.output == []
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == plain.output_text
    done = next(e for e in events if e.type == "response.output_text.done")
    assert done.text == plain.output_text
    last = events[-1].response
    assert last.output_text == plain.output_text
    assert last.usage == plain.usage
    assert len({e.response.id for e in events if hasattr(e, "response")}) == 1
    assert {e.item_id for e in events if hasattr(e, "item_id")} == {last.output[0].id}
    with sdk.responses.stream(**BODY) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


def test_each_event_has_its_name(client: TestClient) -> None:
    answer = client.post("/v1/responses", json={**BODY, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in answer.text.split("\n\n") if block]
    assert [name for name, _ in events] == [
        f"event: {json.loads(data.removeprefix('data: '))['type']}" for _, data in events
    ]


def test_streams_of_beams(sdk: OpenAI) -> None:
    asked: Any = {**BODY, "extra_body": {"generate_kwargs": {"num_beams": 3, "no_repeat_ngram_size": 2}}}
    events: list[Any] = list(sdk.responses.create(**asked, stream=True))
    assert events[-1].response.output_text == sdk.responses.create(**asked).output_text
    assert [e.delta for e in events if e.type == "response.output_text.delta"] == [events[-1].response.output_text]


def test_the_async_sdk(server_url: str, client: TestClient) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
            plain = await sdk.responses.create(**BODY)
            stream: Any = await sdk.responses.create(**BODY, stream=True)
            return plain.output_text, "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])

    assert asyncio.run(ask()) == (by_chat(client), by_chat(client))


def test_input_as_items_and_an_answer_sent_back(sdk: OpenAI, client: TestClient) -> None:
    parts: Any = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    assert sdk.responses.create(**GREEDY, input=parts).output_text == by_chat(client)
    system = [{"role": "system", "content": "Be kind."}, *QUESTION]
    for items in (
        {"instructions": "Be kind.", "input": TEXT},
        {"input": [{"role": "developer", "content": "Be kind."}, *parts]},
    ):
        assert sdk.responses.create(**GREEDY, **items).output_text == by_chat(client, system)
    first = sdk.responses.create(**BODY)
    follow_up: Any = [*parts, *first.output, {"role": "user", "content": "And then?"}]
    turns = [*QUESTION, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And then?"}]
    assert sdk.responses.create(**GREEDY, input=follow_up).output_text == by_chat(client, turns)
    as_json: Any = [*parts, *(item.model_dump() for item in first.output), {"role": "user", "content": "And then?"}]
    assert sdk.responses.create(**GREEDY, input=as_json).output_text == by_chat(client, turns)


def test_parameters(sdk: OpenAI, client: TestClient) -> None:
    drawn = sdk.responses.create(model="tested", input=TEXT, max_output_tokens=24, extra_body={"seed": 5, "top_k": 7})
    assert drawn.output_text == by_chat(client, do_sample=True, temperature=1.0, top_k=7, top_p=1.0, seed=5)
    harmless: Any = {
        "background": False, "include": ["reasoning.encrypted_content"], "parallel_tool_calls": True, "tools": [],
        "tool_choice": "auto", "truncation": "disabled", "service_tier": "auto", "user": "me", "top_logprobs": 0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": None}, "max_tool_calls": 3,
    }  # fmt: skip
    assert sdk.responses.create(**BODY, **harmless).output_text == by_chat(client)
    warned = sdk.responses.create(**BODY, extra_body={"min_new_tokens": 99})
    assert warned.model_extra is not None
    assert "`min_new_tokens` asks for at least" in warned.model_extra["warnings"][0]


def test_logprobs_are_those_of_chat(sdk: OpenAI) -> None:
    included: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    asked: Any = {"model": "tested", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    of_chat: Any = sdk.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    expected = [token.model_dump() for token in of_chat.choices[0].logprobs.content]
    plain: Any = sdk.responses.create(**BODY, **included)
    assert [token.model_dump() for token in plain.output[0].content[0].logprobs] == expected
    assert plain.top_logprobs == 3
    events: list[Any] = list(sdk.responses.create(**BODY, **included, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert deltas
    assert [token.logprob for event in deltas for token in event.logprobs] == [one["logprob"] for one in expected]
    for event in (e for e in events if e.type in ("response.output_text.done", "response.content_part.done")):
        assert len(event.logprobs if event.type.endswith("text.done") else event.part.logprobs) == len(expected)
    by_kwargs: Any = sdk.responses.create(**BODY, extra_body={"generate_kwargs": {"top_logprobs": 3}})
    assert [token.model_dump() for token in by_kwargs.output[0].content[0].logprobs] == expected


def test_items_of_reasoning_have_no_effect(sdk: OpenAI) -> None:
    thought: Any = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    turns: Any = [*QUESTION, {"role": "assistant", "content": "By post."}, {"role": "user", "content": "And then?"}]
    with_thought = [*turns[:1], thought, *turns[1:]]
    assert sdk.responses.create(**GREEDY, input=with_thought).output_text == (
        sdk.responses.create(**GREEDY, input=turns).output_text
    )


def test_tokens_are_counted(sdk: OpenAI) -> None:
    each: list[dict[str, Any]] = [{"input": TEXT}, {"input": TEXT, "instructions": "Be kind."}]
    for fields in each:
        counted = sdk.responses.input_tokens.count(model="tested", **fields)
        answered = sdk.responses.create(**GREEDY, **fields)
        assert answered.usage is not None
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", answered.usage.input_tokens)


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"input": None}, "valid string", "input"),
        ({"input": []}, "at least 1 item", "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "not stored here", "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "Pictures are not offered", "input.0.content.0"),
        ({"input": [{"role": "tool", "content": "x"}]}, "'user'", "input.0.role"),
        ({"store": True}, "This must be false: this server stores no answers", "store"),
        ({"previous_response_id": "resp_1"}, "stores nothing", "previous_response_id"),
        ({"conversation": "conv_1"}, "stores nothing", "conversation"),
        ({"background": True}, "`background` is not accepted", "background"),
        ({"prompt": {"id": "x"}}, "prompts are not stored here", "prompt"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "needs `schema`", "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": [1]}}}, "needs `schema`", "text.format"),
        ({"text": {"format": {"type": "grammar"}}}, "`type` is text, json_object or json_schema", "text.format"),
        ({"text": {"format": "json"}}, "`text.format` must be an object", "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}}, "`text.format` cannot be compiled at #", "text.format"),
        ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, "`text.format` and `regex` exclude each other", "regex"),
        ({"text": {"format": {"type": "json_object"}}, "json_schema": {}}, "`json_schema` and `text.format` set the same parameter", "json_schema"),
        ({"text": {"verbosity": "low"}}, "medium", "text.verbosity"),
        ({"reasoning": {"effort": "high"}}, "`reasoning` is not accepted", "reasoning"),
        ({"truncation": "auto"}, "`truncation` is not accepted", "truncation"),
        ({"max_output_tokens": 0}, "greater than or equal to 1", "max_output_tokens"),
        ({"max_output_token": 3}, "did you mean `max_output_tokens`", "max_output_token"),
        ({"n": 2}, "`n` must be 1", "n"),
        ({"top_logprobs": 3}, "`top_logprobs` needs message.output_text.logprobs in `include`", "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "less than or equal to 20", "top_logprobs"),
        ({"top_logprobs": True}, "`top_logprobs` does not take true or false", "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "needs `stream`", "stream_options"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(client: TestClient, fields: dict[str, Any], message: str, param: str) -> None:
    answer = client.post("/v1/responses", json={**BODY, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


def test_a_prompt_beyond_the_context_names_the_input(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        sdk.responses.create(**{**BODY, "input": "word " * 4000})
    assert refusal.value.param == "input"


def test_nothing_is_stored(sdk: OpenAI) -> None:
    for call in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="stores no answers"):
            call("resp_1")
    with pytest.raises(openai.NotFoundError, match="did you mean tested"):
        sdk.responses.create(**{**BODY, "model": "tasted"})


def test_no_field_of_the_sdk_is_unknown(sdk: OpenAI) -> None:
    of_call = {"extra_headers", "extra_query", "extra_body", "timeout"}
    known = {*REFUSED, *IGNORED}
    for method, schema in (
        (sdk.responses.create, ResponsesRequest),
        (sdk.responses.input_tokens.count, ResponseInputTokensRequest),
    ):
        names = set(signature(method).parameters) - of_call
        assert not {name for name in names - known - set(schema.model_fields) if not is_name(name)}


def test_what_every_api_does_this_does_too(
    backend: LocalBackend, config: AppConfig, serve_app: Callable[[FastAPI], str]
) -> None:
    class Full(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            assert request.options.session == "mine"
            raise Overloaded("The queue is full.", 5)
            yield

    url = serve_app(create_app(Full(backend.replica), config))
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="The queue is full") as full:
                sdk.responses.create(**BODY, prompt_cache_key="mine", stream=stream)
            assert full.value.response.headers["retry-after"] == "5"


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
def test_the_sdk_reads_over_the_empty_lines(late: Late, late_url: str, client: TestClient) -> None:
    late.go_on_after(3)
    with httpx2.stream("POST", f"{late_url}/v1/responses", json={**BODY, "stream": True}) as answer:
        assert "".join(answer.iter_text()).startswith(sse.KEEP_ALIVE.decode() * 3)
    late.go_on_after(3)
    with OpenAI(base_url=f"{late_url}/v1", api_key="none", max_retries=0) as sdk:
        events: list[Any] = list(sdk.responses.create(**BODY, stream=True))
    assert events[-1].response.output_text == by_chat(client)


def test_a_late_error_is_a_failed_response(late: Late, late_url: str) -> None:
    late.error = Overloaded("The request waited in the queue.", 5)
    late.go_on_after(1)
    with OpenAI(base_url=f"{late_url}/v1", api_key="none", max_retries=0) as sdk:
        events: list[Any] = list(sdk.responses.create(**BODY, stream=True))
    assert [event.type for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert [event.sequence_number for event in events] == [0, 1, 2]
    failed = events[-1].response
    assert (failed.status, failed.error.code) == ("failed", "rate_limit_exceeded")
    assert failed.error.message == "The request waited in the queue."


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_work(late: Late, late_url: str, stream: bool) -> None:
    connection = post(late_url, "/v1/responses", {**BODY, "stream": stream})
    until(lambda: late.num_inside == 1)
    time.sleep(0.2)
    connection.close()
    until(lambda: late.num_inside == 0)
