"""The format of a batch: what is a request, what is refused, what the answer looks like."""

import json
from typing import Any

import pytest

from phi3_serve.batch.lines import Reply, RequestLine, answer_line, answered_id, read_lines
from phi3_serve.errors import InvalidRequest

BODY = {"model": "phi-3-tiny", "messages": [{"role": "user", "content": "Hi"}]}


def line(**changed: Any) -> str:
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY} | changed)


def test_requests_are_read_in_their_order_and_empty_lines_are_skipped() -> None:
    read = list(read_lines([line(), "\n", "  ", line(custom_id="b", url="/chat")]))
    assert read == [RequestLine("a", "/v1/chat/completions", BODY), RequestLine("b", "/chat", BODY)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "it is not JSON"),
        ("[]", "a JSON object is expected"),
        ('{"custom_id": "a"}', "`method` is missing; a line has `custom_id`, `method`, `url`, `body`"),
        (line(custom_id=3), "`custom_id` must be a string of 1 to 256 characters"),
        (line(custom_id=""), "`custom_id` must be a string of 1 to 256 characters"),
        (line(custom_id="a" * 257), "`custom_id` must be a string of 1 to 256 characters"),
        (line(method="GET"), '`method` must be "POST"'),
        (line(url="v1/chat/completions"), '`url` must be a path that begins with "/"'),
        (line(url="/v1/completions"), "`url` must be '/v1/chat/completions', the endpoint of the batch"),
        (line(body=[BODY]), "`body` must be a JSON object"),
        (line(body=BODY | {"stream": True}), "`body.stream` must be false"),
        (line(custom_id="first"), "`custom_id` 'first' is also that of line 1"),
    ],
)
def test_what_is_not_a_request_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        list(read_lines([line(custom_id="first"), "", text], url="/v1/chat/completions"))
    assert refused.value.message.startswith(f"Line 3: {complaint}")


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
    assert answered_id(text) == "é"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"custom_id": 1}'])
def test_other_lines_are_no_answers(text: str) -> None:
    assert answered_id(text) is None
