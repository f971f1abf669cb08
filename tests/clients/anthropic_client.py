"""Anthropic's Python SDK: messages, plain and streamed, objects of a pydantic model, tools, numbers of tokens, errors."""

import asyncio
import sys
from typing import Any, Literal

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is 2+2?"}]


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """Call with the SDK's defaults and few settings."""
    client: Any = Anthropic(base_url=url, api_key="none", max_retries=0)
    asked = {"model": model, "messages": QUESTION, "max_tokens": 12, "extra_body": {"temperature": 0}}
    answer = client.messages.create(**asked, system="Be kind.")
    assert answer.content[0].text
    assert answer.usage.output_tokens > 0
    with client.messages.stream(**asked, system="Be kind.") as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().usage == answer.usage
    counted = client.messages.count_tokens(model=model, messages=QUESTION, system="Be kind.")
    assert counted.input_tokens == answer.usage.input_tokens
    parsed = client.messages.parse(**{**asked, "max_tokens": 200}, output_format=Vote)
    assert isinstance(parsed.parsed_output, Vote)
    tool = {"name": "vote", "description": "Votes.", "input_schema": Vote.model_json_schema()}
    called = client.messages.create(
        **{**asked, "max_tokens": 800}, tools=[tool], tool_choice={"type": "any", "disable_parallel_tool_use": True}
    )
    (block,) = [block for block in called.content if block.type == "tool_use"][:1]
    Vote.model_validate(block.input)
    assert called.stop_reason == "tool_use"
    assert [each.id for each in client.models.list()] == [model]
    assert asyncio.run(_asynchronously(url, asked))
    message = ""
    try:
        client.messages.create(**{**asked, "model": "nothing"})
    except anthropic.NotFoundError as error:
        message = str(error)
    assert "served are" in message


async def _asynchronously(url: str, asked: dict[str, Any]) -> str:
    sdk: Any = AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    async with sdk:
        return str((await sdk.messages.create(**asked)).content[0].text)


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
