"""AutoGen: an agent and a group of two with their default settings, which send names, plain and streamed; objects."""

import asyncio
import sys
from typing import Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, StructuredMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

ABOUT = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
    "multiple_system_messages": False,
}


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


async def check(url: str, model: str) -> None:
    """The system message is AutoGen's own, and each turn has the name of its author."""
    options = {"model": model, "base_url": f"{url}/v1", "api_key": "none", "model_info": ABOUT, "temperature": 0}
    client = OpenAIChatCompletionClient(**options, max_tokens=12)
    assistant = AssistantAgent("assistant", client)
    answer = (await assistant.run(task="What is 2+2?")).messages[-1]
    assert answer.content
    assert answer.models_usage.completion_tokens > 0
    streaming = AssistantAgent("assistant", client, model_client_stream=True)
    events = [event async for event in streaming.run_stream(task="What is 2+2?")]
    chunks = [event.content for event in events if isinstance(event, ModelClientStreamingChunkEvent)]
    assert "".join(chunks) == answer.content
    pair = [AssistantAgent(name, client) for name in ("teacher", "pupil")]
    team = RoundRobinGroupChat(pair, termination_condition=MaxMessageTermination(4))
    talk = await team.run(task="What is 2+2?")
    assert [message.source for message in talk.messages] == ["user", "teacher", "pupil", "teacher"]
    reader = AssistantAgent("reader", OpenAIChatCompletionClient(**options, max_tokens=200), output_content_type=Vote)
    shaped = (await reader.run(task="Is 2+2 four?")).messages[-1]
    assert isinstance(shaped, StructuredMessage)
    assert isinstance(shaped.content, Vote)


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], sys.argv[3]))
