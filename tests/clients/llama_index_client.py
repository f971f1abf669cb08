"""LlamaIndex, OpenAI-like: chat and completion models, plain and streamed, objects of a pydantic model."""

import asyncio
import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

TURNS = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="What is 2+2?")]


class Vote(BaseModel, extra="forbid"):
    answer: Literal["yes", "no"]
    is_sure: bool


def check(url: str, model: str) -> None:
    """Use both kinds of models, and the program that fills an object."""
    options = {"model": model, "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_retries": 0}
    chat = OpenAILike(**options, is_chat_model=True, max_tokens=12)
    answer = chat.chat(TURNS).message.content
    assert answer
    assert "".join(part.delta for part in chat.stream_chat(TURNS)) == answer
    assert asyncio.run(chat.achat(TURNS)).message.content == answer
    assert chat.complete("What is 2+2?").text
    text = OpenAILike(**options, is_chat_model=False, max_tokens=6)
    continued = text.complete("1, 2, 3,").text
    assert continued
    assert "".join(part.delta for part in text.stream_complete("1, 2, 3,")) == continued
    shaped = OpenAILike(**options, is_chat_model=True, should_use_structured_outputs=True, max_tokens=200)
    vote = shaped.structured_predict(Vote, PromptTemplate("Is {sum} four?"), sum="2+2")
    assert isinstance(vote, Vote)


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
