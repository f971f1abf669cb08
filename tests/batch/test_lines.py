"""The format of a batch: what is a request, what is refused, what the answer looks like."""

import json
from io import BytesIO
from typing import Any

import pytest

from phi3_serve.batch.lines import (
    LineError,
    Reply,
    RequestLine,
    answer_line,
    bounded_lines,
    read_answer,
    read_lines,
    unanswered_line,
)

CUSTOM_ID = "`custom_id` must be a string of 1 to 256 characters"
BODY = {"model": "phi-3-tiny", "messages": [{"role": "user", "content": "Hi"}]}


def line(**changed: Any) -> bytes:
    given = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY} | changed
    return json.dumps(given).encode()


def test_requests_are_read_in_their_order_and_empty_lines_are_skipped() -> None:
    read = list(read_lines([line(), b"\n", b"  ", line(custom_id="b", url="/chat")]))
    assert read == [RequestLine("a", "/v1/chat/completions", BODY), RequestLine("b", "/chat", BODY)]


@pytest.mark.parametrize(
    ("raw", "complaint", "code", "param"),
    [
        (b"{", "it is not JSON", "invalid_json_line", None),
        (b"[" * 100_000, "it is not JSON", "invalid_json_line", None),
        (b"\xff", "it is not text in UTF-8", "invalid_json_line", None),
        (b"[]", "a JSON object is expected", "invalid_json_line", None),
        (b" " * 1_000_000 + b"{}", "it has more than 500,000 bytes", "line_too_long", None),
        (
            b'{"custom_id": "a"}',
            "`method` is missing; a line has `custom_id`, `method`, `url`, `body`",
            "missing_required_parameter",
            "method",
        ),
        (line(custom_id=3), CUSTOM_ID, "invalid_value", "custom_id"),
        (line(custom_id=""), CUSTOM_ID, "invalid_value", "custom_id"),
        (line(custom_id="a" * 257), CUSTOM_ID, "invalid_value", "custom_id"),
        (line(method="GET"), '`method` must be "POST"', "invalid_method", "method"),
        (line(url="v1/chat/completions"), '`url` must be a path that begins with "/"', "invalid_url", "url"),
        (
            line(url="/v1/completions"),
            "`url` must be '/v1/chat/completions', the endpoint of the batch",
            "mismatched_url",
            "url",
        ),
        (line(body=[BODY]), "`body` must be a JSON object", "invalid_value", "body"),
        (line(body=BODY | {"stream": True}), "`body.stream` must be false", "invalid_value", "body.stream"),
        (line(custom_id="first"), "`custom_id` 'first' is also that of line 1", "duplicate_custom_id", "custom_id"),
    ],
)
def test_what_is_not_a_request_is_refused_with_its_line(
    raw: bytes, complaint: str, code: str, param: str | None
) -> None:
    lines = [line(custom_id="first"), b"", raw, line(custom_id="last")]
    how: dict[str, Any] = {"url": "/v1/chat/completions", "max_bytes": 500_000}
    with pytest.raises(LineError) as refused:
        list(read_lines(lines, **how))
    error = refused.value
    assert error.message.startswith(f"Line 3: {complaint}")
    assert (error.number, error.code, error.param) == (3, code, param)
    errors: list[LineError] = []
    assert [read.custom_id for read in read_lines(lines, **how, on_error=errors.append)] == ["first", "last"]
    assert [str(each) for each in errors] == [str(error)]


def test_a_file_of_one_endless_line_is_not_read_into_memory() -> None:
    file = BytesIO(b"a" * 1_000_000 + b"\n" + b"b" * 10 + b"\r\n" + b"c" * 1_000)
    assert [len(raw) for raw in bounded_lines(file, 10)] == [11, 11, 11]


def test_an_answer_has_the_form_of_openai() -> None:
    text = answer_line(RequestLine("é", "/chat", {}), Reply(200, {"Result": "Grüße\n"}, "id-1"))
    assert "\n" not in text
    made = json.loads(text)
    assert made.pop("id").startswith("batch_req_")
    assert made == {
        "custom_id": "é",
        "response": {"status_code": 200, "request_id": "id-1", "body": {"Result": "Grüße\n"}},
        "error": None,
    }
    assert read_answer(text) == ("é", True)
    assert read_answer(answer_line(RequestLine("é", "/chat", {}), Reply(400, {}))) == ("é", False)


def test_a_request_without_an_answer_has_the_reason() -> None:
    made = json.loads(unanswered_line(RequestLine("a", "/chat", {}), "batch_expired", "Too late."))
    assert made.pop("id").startswith("batch_req_")
    assert made == {
        "custom_id": "a",
        "response": None,
        "error": {"code": "batch_expired", "message": "Too late."},
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"custom_id": 1}'])
def test_other_lines_are_no_answers(text: str) -> None:
    assert read_answer(text) is None
