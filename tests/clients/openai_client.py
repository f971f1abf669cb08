"""OpenAI's Python SDK: chat, completions and responses, plain and streamed, objects of a pydantic model, tools, errors."""

import asyncio
import sys
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is 2+2?"}]


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """Call each endpoint with the SDK's defaults and few settings."""
    client: Any = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert [each.id for each in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    _chat(client, model)
    _completions(client, model)
    _responses(client, model)
    _tools(client, model)
    assert asyncio.run(_asynchronously(url, model))
    message = ""
    try:
        client.chat.completions.create(model="nothing", messages=QUESTION)
    except openai.NotFoundError as error:
        message = str(error)
    assert "served are" in message


def _chat(client: Any, model: str) -> None:
    asked = {"model": model, "messages": QUESTION, "temperature": 0, "max_completion_tokens": 12}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text = answer.choices[0].message.content
    assert text
    assert answer.choices[0].logprobs.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == answer.usage
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == text
    parsed = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=Vote, temperature=0, max_completion_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, Vote)


def _completions(client: Any, model: str) -> None:
    asked = {"model": model, "prompt": "1, 2, 3,", "temperature": 0, "max_tokens": 6}
    text = client.completions.create(**asked).choices[0].text
    assert text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == text
    scored = client.completions.create(**{**asked, "prompt": ["1, 2, 3,", "1, 2, 3,"]}, logprobs=2, echo=True)
    assert [choice.text for choice in scored.choices] == ["1, 2, 3," + text] * 2
    assert scored.choices[0].logprobs.token_logprobs[0] is None


def _responses(client: Any, model: str) -> None:
    asked = {"model": model, "input": QUESTION, "temperature": 0, "max_output_tokens": 12}
    answer = client.responses.create(**asked, instructions="Be kind.")
    assert answer.output_text
    with client.responses.stream(**asked, instructions="Be kind.") as stream:
        events = [event.type for event in stream]
        assert stream.get_final_response().output_text == answer.output_text
    assert "response.output_text.delta" in events
    follow_up = [*QUESTION, *answer.output, {"role": "user", "content": "And 3+3?"}]
    assert client.responses.create(**{**asked, "input": follow_up}).output_text
    parsed = client.responses.parse(model=model, input=QUESTION, text_format=Vote, temperature=0, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Vote)
    assert client.responses.input_tokens.count(model=model, input=QUESTION).input_tokens > 0


def _tools(client: Any, model: str) -> None:
    asked = {"model": model, "messages": QUESTION, "temperature": 0, "tools": [openai.pydantic_function_tool(Vote)]}
    answer = client.chat.completions.parse(
        **asked, tool_choice="required", parallel_tool_calls=False, max_completion_tokens=800
    )
    (call,) = answer.choices[0].message.tool_calls[:1]
    assert isinstance(call.function.parsed_arguments, Vote)
    result = {"role": "tool", "tool_call_id": call.id, "content": "counted"}
    turns = [*QUESTION, answer.choices[0].message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(**{**asked, "messages": turns}, max_completion_tokens=12)
    assert after.choices[0].message.content is not None
    function = {"type": "function", "name": "vote", "parameters": Vote.model_json_schema(), "strict": True}
    response = client.responses.create(
        model=model,
        input=QUESTION,
        tools=[function],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_output_tokens=800,
    )
    (item,) = [item for item in response.output if item.type == "function_call"][:1]
    Vote.model_validate_json(item.arguments)


async def _asynchronously(url: str, model: str) -> str:
    sdk: Any = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    async with sdk:
        stream = await sdk.chat.completions.create(
            model=model, messages=QUESTION, temperature=0, max_completion_tokens=12, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
