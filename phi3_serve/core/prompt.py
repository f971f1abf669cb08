"""What a model is asked: a conversation, a text or token ids."""

from dataclasses import dataclass
from typing import Literal

from phi3_serve.pickled_by_name import pickled_by_name

Role = Literal["system", "user", "assistant"]


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Nothing in it becomes a control token, also if it spells one."""

    role: Role
    content: str
    name: str | None = None  # of the author
    reasoning_content: str | None = None  # what an assistant thought before it answered


@pickled_by_name
@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt as the caller wrote it. Names of control tokens in it become control tokens."""

    text: str
    prefix: str = ""
    add_special_tokens: bool = True  # those that the tokenizer puts before every text, if it does


@pickled_by_name
@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, used without change."""

    token_ids: tuple[int, ...]


@pickled_by_name
@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, which the replica renders with the chat template of its checkpoint."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True  # end with what begins an answer of the assistant
    continue_final_message: bool = False  # end within the last message, which the answer continues
    add_special_tokens: bool = False  # those of RawPrompt, besides what the template writes
    tools_text: str = ""  # the part of the system message that offers tools, for errors


Prompt = RawPrompt | TokenPrompt | Conversation
