"""ollama's Python client: chat and generate, plain and streamed, a JSON schema, the lists of models, errors."""

import asyncio
import sys
from typing import Any, Literal

import ollama
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is 2+2?"}]
OPTIONS = {"temperature": 0, "num_predict": 12}


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """Call each endpoint that this server has."""
    client: Any = ollama.Client(host=url)
    answer = client.chat(model, QUESTION, options=OPTIONS)
    assert answer.message.content
    assert answer.eval_count > 0
    stream = client.chat(model, QUESTION, options=OPTIONS, stream=True)
    assert "".join(part.message.content for part in stream) == answer.message.content
    text = client.generate(model, "What is 2+2?", system="Be kind.", options=OPTIONS)
    assert text.response
    stream = client.generate(model, "What is 2+2?", system="Be kind.", options=OPTIONS, stream=True)
    assert "".join(part.response for part in stream) == text.response
    of_schema = client.chat(
        model, QUESTION, format=Vote.model_json_schema(), options={"temperature": 0, "num_predict": 200}
    )
    Vote.model_validate_json(of_schema.message.content)
    assert [each.model for each in client.list().models] == [f"{model}:latest"]
    assert [each.model for each in client.ps().models] == [f"{model}:latest"]
    assert "completion" in client.show(model).capabilities
    assert asyncio.run(_asynchronously(url, model)) == answer.message.content
    status = 0
    try:
        client.chat("nothing", QUESTION)
    except ollama.ResponseError as error:
        status = error.status_code
    assert status == 404


async def _asynchronously(url: str, model: str) -> str:
    client: Any = ollama.AsyncClient(host=url)
    return str((await client.chat(model, QUESTION, options=OPTIONS)).message.content)


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
