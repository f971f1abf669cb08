"""langchain-openai: chat and text models, invoke, batch and stream, with their default settings."""

import sys

from langchain_openai import ChatOpenAI, OpenAI


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
    text = OpenAI(**options, max_tokens=4)
    result = text.generate([f"{number}, {number + 1}," for number in range(25)])
    assert len(result.generations) == 25
    assert "".join(text.stream("1, 2,")) == text.invoke("1, 2,")


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
