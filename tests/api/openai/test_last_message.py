"""The end of a conversation: a new answer, nothing, or the last message, which the answer continues."""

from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

QUESTION = {"role": "user", "content": "How to explain Internet for a medieval knight?"}
PREFILL = {"role": "assistant", "content": "Dear knight, the"}
GREEDY: dict[str, Any] = {"model": "tested", "temperature": 0, "max_tokens": 12}


def ask(client: TestClient, *messages: dict[str, Any], **fields: Any) -> Any:
    response = client.post("/v1/chat/completions", json={**GREEDY, "messages": list(messages), **fields})
    assert response.status_code == 200, response.text
    return response.json()


def continued(oracle: Any, messages: list[dict[str, Any]], **template: Any) -> str:
    """What transformers generates after the template, with the space that a new word begins with."""
    tokenizer = oracle.tokenizer
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", **template)["input_ids"]
    whole = oracle.model.generate(ids, do_sample=False, max_new_tokens=12)[0]
    before, after = (tokenizer.decode(i, skip_special_tokens=True) for i in (ids[0], whole))
    return str(after[len(before) :])


@pytest.mark.parametrize("last", [PREFILL, QUESTION, {"role": "system", "content": "Be kind"}], ids=lambda m: m["role"])
@pytest.mark.parametrize("fields", [{}, {"add_generation_prompt": False}], ids=str)
def test_an_answer_continues_the_last_message(
    client: TestClient, oracle: Any, last: dict[str, Any], fields: dict[str, Any]
) -> None:
    messages = [QUESTION, last]
    answer = ask(client, *messages, continue_final_message=True, **fields)
    message = answer["choices"][0]["message"]
    assert message["role"] == last["role"]
    assert message["content"] == continued(oracle, messages, continue_final_message=True)


def test_a_space_at_the_end_of_the_last_message_counts(client: TestClient, oracle: Any) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "Dear knight, the "}]
    answer = ask(client, *messages, continue_final_message=True)["choices"][0]["message"]["content"]
    assert answer == continued(oracle, messages, continue_final_message=True)


def test_without_a_generation_prompt_the_template_ends_behind_the_last_message(client: TestClient, oracle: Any) -> None:
    answer = ask(client, QUESTION, add_generation_prompt=False)["choices"][0]["message"]
    assert answer["role"] == "user"
    expected = continued(oracle, [QUESTION], add_generation_prompt=False)
    assert answer["content"] == expected.removeprefix(" ")


@pytest.mark.parametrize("stream", [False, True])
def test_echo_repeats_a_last_message_of_the_same_role(client: TestClient, stream: bool) -> None:
    sdk = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)

    def text(*messages: Any, **fields: Any) -> str:
        asked: Any = {"messages": list(messages), "extra_body": fields, **GREEDY}
        if not stream:
            return sdk.chat.completions.create(**asked).choices[0].message.content or ""
        chunks = list(sdk.chat.completions.create(stream=True, **asked))
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    continued = text(QUESTION, PREFILL, continue_final_message=True)
    assert text(QUESTION, PREFILL, continue_final_message=True, echo=True) == PREFILL["content"] + continued
    assert text(QUESTION, PREFILL, echo=True) == PREFILL["content"] + text(QUESTION, PREFILL)
    assert text(QUESTION, echo=True) == text(QUESTION)
    assert text(QUESTION, echo=False) == text(QUESTION)


def test_settings_of_the_template_have_no_effect_and_a_warning(client: TestClient) -> None:
    plain = ask(client, QUESTION)
    body = {**GREEDY, "messages": [QUESTION], "chat_template_kwargs": {"enable_thinking": False}}
    response = client.post("/v1/chat/completions", json=body)
    warning = "`chat_template_kwargs` had no effect."
    assert response.headers["x-phi3-serve-warning"] == warning
    assert response.json()["warnings"] == [warning]
    assert response.json()["choices"] == plain["choices"]
    streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
    assert streamed.headers["x-phi3-serve-warning"] == warning
    assert warning in streamed.text
    empty = client.post("/v1/chat/completions", json={**body, "chat_template_kwargs": {}})
    assert "x-phi3-serve-warning" not in empty.headers
    assert "warnings" not in empty.json()
