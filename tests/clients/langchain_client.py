"""langchain-openai: chat and text models, invoke, batch and stream, ``with_structured_output``, ``bind_tools``."""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Vote(BaseModel, extra="forbid"):
    """A vote."""

    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """The text model sends its prompts in one call, 20 by default."""
    options = {"base_url": f"{url}/v1", "api_key": "none", "model": model, "temperature": 0, "max_retries": 0}
    chat = ChatOpenAI(**options, max_completion_tokens=12)
    answer = chat.invoke("What is 2+2?")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream("What is 2+2?")) == answer.content
    assert [each.content for each in chat.batch(["What is 2+2?"] * 3)] == [answer.content] * 3
    named = chat.invoke([("system", "Be kind."), ("human", "What is 2+2?"), ("ai", "4"), ("human", "And 3+3?")])
    assert named.content
    scored = chat.bind(logprobs=True, top_logprobs=2).invoke("What is 2+2?")
    assert scored.response_metadata["logprobs"]["content"]
    long = ChatOpenAI(**options, max_completion_tokens=800)
    for method in ("json_schema", "function_calling"):
        assert isinstance(long.with_structured_output(Vote, method=method).invoke("Is 2+2 four?"), Vote)
    with_tools = long.bind_tools([Vote], tool_choice="required")
    (call,) = with_tools.invoke("Is 2+2 four?").tool_calls[:1]
    assert call["name"] == "Vote"
    Vote.model_validate(call["args"])
    first, *chunks = with_tools.stream("Is 2+2 four?")
    gathered = sum(chunks, first)
    assert gathered.tool_calls[0]["args"] == call["args"]
    assert long.bind_tools([Vote]).invoke("What is 2+2?").content is not None
    text = OpenAI(**options, max_tokens=4)
    result = text.generate([f"{number}, {number + 1}," for number in range(25)])
    assert len(result.generations) == 25
    assert "".join(text.stream("1, 2,")) == text.invoke("1, 2,")


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
