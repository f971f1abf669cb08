"""Haystack: generators over chat and over responses, streams, a pipeline, objects of a pydantic model."""

import sys
from typing import Any, Literal

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from pydantic import BaseModel

TURNS = [ChatMessage.from_system("Be kind."), ChatMessage.from_user("What is 2+2?")]


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """Run the generators alone and in a pipeline."""
    options = {"model": model, "api_base_url": f"{url}/v1", "api_key": Secret.from_token("none"), "max_retries": 0}
    chat = OpenAIChatGenerator(**options, generation_kwargs={"temperature": 0, "max_completion_tokens": 12})
    (reply,) = chat.run(TURNS)["replies"]
    assert reply.text
    chunks: list[Any] = []
    chat.run(TURNS, streaming_callback=chunks.append)
    assert "".join(chunk.content for chunk in chunks) == reply.text
    shape = {"response_format": Vote, "temperature": 0, "max_completion_tokens": 200}
    (reply,) = chat.run(TURNS, generation_kwargs=shape)["replies"]
    Vote.model_validate_json(reply.text)
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder(template=[ChatMessage.from_user("What is {{ sum }}?")]))
    pipeline.add_component("model", chat)
    pipeline.connect("prompt.prompt", "model.messages")
    assert pipeline.run({"prompt": {"sum": "2+2"}})["model"]["replies"][0].text
    responses = OpenAIResponsesChatGenerator(**options, generation_kwargs={"temperature": 0, "max_output_tokens": 12})
    (reply,) = responses.run(TURNS)["replies"]
    assert reply.text
    chunks = []
    responses.run(TURNS, streaming_callback=chunks.append)
    assert "".join(chunk.content for chunk in chunks) == reply.text


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
