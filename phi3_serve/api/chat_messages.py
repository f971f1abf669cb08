"""Messages in OpenAI's form, which other servers' endpoints take, too."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from phi3_serve.api.fields import OnlyAssistantMaySayNothing, nothing
from phi3_serve.api.tools.offer import Offer
from phi3_serve.api.tools.prompt import with_offer
from phi3_serve.api.tools.turns import Turns
from phi3_serve.core.prompt import Conversation
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import Characters

# The type of a part of a message → what it is. The model has no use for any of them.
MEDIA: Mapping[str, str] = {
    "image_url": "Pictures",
    "input_image": "Pictures",
    "input_audio": "Sound recordings",
    "audio_url": "Sound recordings",
    "video_url": "Videos",
    "file": "Files",
    "input_file": "Files",
}


def text_only(given: Any) -> Any:
    """``given``, a part of a message as it was sent.

    Raises:
        PydanticCustomError: it is a picture, sound or a file.
    """
    if isinstance(given, dict) and (media := MEDIA.get(str(given.get("type")))):
        raise PydanticCustomError(
            "not_offered", "{media} are not offered: the model reads text only.", {"media": media}
        )
    return given


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    type: Literal["text"]
    """Pictures, sound and files are not offered."""
    text: Characters
    """The text. Several parts are joined without a separator."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, given: Any) -> Any:
        return text_only(given)


class CalledFunction(BaseModel):
    """What an assistant has called."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    name: Characters
    """The name of the function."""
    arguments: Characters | dict[str, Any] = ""
    """Its arguments as JSON."""
    parsed_arguments: Any = None
    """Without effect: the SDK's own reading of the arguments."""


class MessageToolCall(BaseModel):
    """A call in an assistant's turn."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    id: Characters | None = None
    """By which the message with the result names this call."""
    type: Literal["function"] = "function"
    """Other calls are not offered."""
    function: CalledFunction
    """What was called."""
    index: Any = None
    """Without effect: the place of the call in a stream."""


class ChatCompletionMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """The author of this turn; developer is OpenAI's newer word for system. A tool's turn is the result of a call, and
    a function's its older form. The model reads results as a turn of the user."""
    content: Annotated[Characters | list[TextPart] | None, OnlyAssistantMaySayNothing] = Field(
        None, validate_default=True
    )
    """The text. Text that spells a control token stays text. An assistant's turn may leave it out, or have null: that
    is an empty text."""
    name: Characters | None = None
    """The name of the author. It has an effect if the checkpoint's chat template uses it; Phi-3's does not. In a turn
    of a function, and in one of a tool without tool_call_id, it is the function that was called."""
    tool_calls: list[MessageToolCall] | None = None
    """What an assistant has called. The model reads it behind the content, in the form that it is asked for."""
    function_call: CalledFunction | None = None
    """The older form of tool_calls."""
    tool_call_id: Characters | None = None
    """The call of an earlier turn whose result a tool's turn has."""
    reasoning_content: Characters | None = None
    """What an assistant thought first. It has an effect if the checkpoint's chat template uses it; Phi-3's does not."""
    reasoning: Any = None
    """Without effect: another name of reasoning_content."""
    annotations: Any = None
    """Without effect: citations in an earlier answer."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    parsed: Any = None
    """Without effect: the SDK's own reading of the content."""
    refusal: Annotated[None, nothing("a refusal is not a text that the model has said")] = None
    """Always null."""
    audio: Annotated[None, nothing("the model reads text only")] = None
    """Always null."""

    @property
    def text(self) -> str:
        """The content in one piece."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content or ())


ChatCompletionMessages = Annotated[list[ChatCompletionMessage], Len(1, 1024)]


def conversation(messages: Sequence[ChatCompletionMessage], offer: Offer | None = None) -> Conversation:
    """``messages`` as the replica takes them, with the tools of ``offer``.

    Raises:
        InvalidRequest: a result belongs to no call.
    """
    turns = Turns()
    for number, message in enumerate(messages):
        _add(message, turns, f"messages.{number}")
    return with_offer(turns.messages, offer)


def _add(message: ChatCompletionMessage, turns: Turns, at: str) -> None:
    if message.role == "tool":
        turns.result(message.tool_call_id, message.text, at=f"{at}.tool_call_id", name=message.name)
    elif message.role == "function":
        turns.result(None, message.text, at=f"{at}.name", name=message.name)
    else:
        role = "system" if message.role == "developer" else message.role
        turns.say(role, message.text, message.name, message.reasoning_content)
        calls = message.tool_calls or ()
        if message.role != "assistant" and (calls or message.function_call):
            name = f"{at}.{'tool_calls' if calls else 'function_call'}"
            raise InvalidRequest(
                f"`{name}` is in a turn of the {message.role}; only an assistant has called tools.", name
            )
        for number, call in enumerate(calls):
            called, place = call.function, f"{at}.tool_calls.{number}.function.arguments"
            turns.call(call.id, called.name, called.arguments, at=place)
        if message.function_call is not None:
            called, place = message.function_call, f"{at}.function_call.arguments"
            turns.call(None, called.name, called.arguments, at=place)
