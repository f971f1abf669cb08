"""Pydantic AI: agents over chat, over responses and over Anthropic's API, streams, a history, objects of a model, tools."""

import asyncio
import sys
from typing import Literal

from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS: dict[str, float] = {"temperature": 0, "max_tokens": 800}


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


async def check(url: str, model: str) -> None:
    """Run the same agent over each of the three APIs."""
    of_openai = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    await _agents(OpenAIChatModel(model, provider=of_openai))
    await _agents(OpenAIResponsesModel(model, provider=of_openai))
    sdk = AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    await _agents(AnthropicModel(model, provider=AnthropicProvider(anthropic_client=sdk)))


async def _agents(model: Model) -> None:
    agent = Agent(model, instructions="Be kind.", model_settings={"temperature": 0, "max_tokens": 12})
    first = await agent.run("What is 2+2?")
    assert first.output
    assert first.usage.output_tokens > 0
    assert (await agent.run("And 3+3?", message_history=first.all_messages())).output
    async with agent.run_stream("What is 2+2?") as stream:
        assert "".join([text async for text in stream.stream_text(delta=True)]) == first.output
    by_tool = await Agent(model, output_type=Vote, model_settings=SETTINGS).run("Is 2+2 four?")
    assert isinstance(by_tool.output, Vote)
    if not isinstance(model, AnthropicModel):  # Pydantic AI knows which models of Anthropic have schemas
        vote = await Agent(model, output_type=NativeOutput(Vote), model_settings=SETTINGS).run("Is 2+2 four?")
        assert isinstance(vote.output, Vote)


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], sys.argv[3]))
