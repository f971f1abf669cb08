"""instructor: an object of a pydantic model, in the mode for servers that offer JSON schemas, and by a call of a tool."""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """The answer is an object of the model."""
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)
        vote = client.chat.completions.create(
            model=model,
            response_model=Vote,
            messages=[{"role": "user", "content": "Is 2+2 four?"}],
            max_tokens=200,
            temperature=0,
        )
        assert isinstance(vote, Vote)


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
