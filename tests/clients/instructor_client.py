"""instructor: an object of a pydantic model, in the mode for servers that offer JSON schemas."""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def check(url: str, model: str) -> None:
    """The answer is an object of the model."""
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
    person = client.chat.completions.create(
        model=model,
        response_model=Person,
        messages=[{"role": "user", "content": "Ewa is 30."}],
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(person, Person)


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
