"""Spans of real requests, as a collector in this process receives them over HTTP."""

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.config.app import AppConfig
from phi3_serve.config.observability import TracesConfig
from phi3_serve.errors import Phi3ServeError
from phi3_serve.observability.traces import Traces, traces_to
from tests.support import ENDLESS, LocalBackend

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NAMES = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def take(self, received: ExportTraceServiceRequest) -> None:
        for resource in received.resource_spans:
            attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.services.add(attributes["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes_of(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def spans_of(
    collector: Collector,
    traces: Traces,
    backend: LocalBackend,
    config: AppConfig,
    body: Any,
    *,
    status: int | None = None,
    **headers: str,
) -> list[Any]:
    """The spans of one request, as the collector has them."""
    client = TestClient(create_app(backend, config, sinks=[traces]))
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == (status or (400 if "stop_token_ids" in body else 200)), answer.text
    traces.close()
    return collector.spans


BODY = {
    "model": "tested",
    "messages": [{"role": "user", "content": "4711"}],
    "max_tokens": 5,
    "temperature": 0,
    "stream": True,
}


def test_a_request_is_traced_from_http_to_the_engine(
    collector: Collector, backend: LocalBackend, config: AppConfig
) -> None:
    traces = traces_to(collector.url, 1.0)
    spans = spans_of(collector, traces, backend, config, BODY, traceparent=f"00-{TRACE}-{PARENT}-01")
    named = {span.name: span for span in spans}
    http, chat = named["POST /v1/chat/completions"], named["chat tested"]
    parts = [named[f"engine.{name}"] for name in ("queue", "prefill", "decode")]
    assert len(spans) == 5
    assert collector.services == {"phi3-serve"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert http.parent_span_id.hex() == PARENT
    assert chat.parent_span_id == http.span_id
    assert {part.parent_span_id for part in parts} == {chat.span_id}

    assert attributes_of(http)["http.response.status_code"] == 200
    found = attributes_of(chat)
    assert {name for name in found if name.startswith("gen_ai.")} <= NAMES
    assert (found["gen_ai.operation.name"], found["gen_ai.request.model"]) == ("chat", "tested")
    assert (found["gen_ai.request.max_tokens"], found["gen_ai.usage.output_tokens"]) == (5, 5)
    assert found["gen_ai.usage.input_tokens"] > 0
    assert [one.string_value for one in found["gen_ai.response.finish_reasons"].values] == ["length"]
    assert 0 < found["gen_ai.response.time_to_first_chunk"] < 60
    assert "4711" not in str(spans)

    times = [parts[0].start_time_unix_nano, *(part.end_time_unix_nano for part in parts)]
    assert times == sorted(times)
    assert [part.start_time_unix_nano for part in parts] == times[:3]
    assert chat.start_time_unix_nano <= times[0]
    assert times[3] == chat.end_time_unix_nano <= http.end_time_unix_nano


def test_an_error_is_on_its_span(collector: Collector, backend: LocalBackend, config: AppConfig) -> None:
    body = {**BODY, "stream": False, "stop_token_ids": [99_999]}
    spans = spans_of(collector, traces_to(collector.url, 1.0), backend, config, body)
    (chat,) = (span for span in spans if span.name == "chat tested")
    assert attributes_of(chat)["error.type"] == chat.status.message == "InvalidRequest"
    assert len(spans) == 2  # nothing of it ran in the engine


def test_a_request_that_fails_in_the_engine_has_its_parts(
    collector: Collector, backend: LocalBackend, config: AppConfig
) -> None:
    impatient = config.model_copy(update={"limits": config.limits.model_copy(update={"request_timeout_s": 0.3})})
    body = {**BODY, "stream": False, "max_tokens": 2000, **ENDLESS}
    spans = spans_of(collector, traces_to(collector.url, 1.0), backend, impatient, body, status=408)
    named = {span.name: span for span in spans}
    chat = named["chat tested"]
    assert attributes_of(chat)["error.type"] == "RequestTimeout"
    parts = [named[f"engine.{name}"] for name in ("queue", "prefill", "decode")]
    assert {part.parent_span_id for part in parts} == {chat.span_id}
    seconds = [(part.end_time_unix_nano - part.start_time_unix_nano) / 1e9 for part in parts]
    assert 0 < seconds[2] < sum(seconds) < 0.5  # it answered until its time was over


def test_what_is_not_sampled_is_not_sent(collector: Collector, backend: LocalBackend, config: AppConfig) -> None:
    assert spans_of(collector, traces_to(collector.url, 0.0), backend, config, BODY) == []


def test_without_its_packages_the_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(Phi3ServeError, match=r"traces.endpoint needs more packages: pip install 'phi3-serve\[otel\]'"):
        traces_to("http://127.0.0.1:1", 1.0)


def test_an_endpoint_is_a_url() -> None:
    assert TracesConfig().endpoint is None
    with pytest.raises(ValueError, match="must be a URL with http:// or https://, and is 'collector:4318'"):
        TracesConfig(endpoint="collector:4318")
