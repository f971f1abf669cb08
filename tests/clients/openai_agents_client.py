"""OpenAI's Agents SDK: agents over responses, which are its default, and over chat; streams, a session, objects, tools."""

import asyncio
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


votes: list[tuple[str, bool]] = []


def vote(answer: Literal["yes", "no"], is_sure: bool) -> str:
    """Votes."""
    votes.append((answer, is_sure))
    return "counted"


async def check(url: str, model: str) -> None:
    """Run the same agents over both APIs."""
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    set_default_openai_client(client, use_for_tracing=False)
    set_tracing_disabled(True)
    await _agents(model)
    await _agents(OpenAIChatCompletionsModel(model, client))


async def _agents(model: object) -> None:
    short, long = (ModelSettings(temperature=0, max_tokens=number) for number in (12, 200))
    agent = Agent("Helper", instructions="Be kind.", model=model, model_settings=short)
    session = SQLiteSession("one")
    first = await Runner.run(agent, "What is 2+2?", session=session)
    assert first.final_output
    assert (await Runner.run(agent, "And 3+3?", session=session)).final_output
    streamed = Runner.run_streamed(agent, "What is 2+2?")
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == streamed.final_output == first.final_output
    forced = ModelSettings(temperature=0, max_tokens=800, tool_choice="required", parallel_tool_calls=False)
    voter = Agent("Voter", model=model, model_settings=forced, tools=[function_tool(vote)])
    votes.clear()
    assert (await Runner.run(voter, "Is 2+2 four?", max_turns=4)).final_output is not None
    assert votes
    shaped = Agent("Reader", model=model, model_settings=long, output_type=Vote)
    assert isinstance((await Runner.run(shaped, "Is 2+2 four?")).final_output, Vote)


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], sys.argv[3]))
