"""Messages in OpenAI's form, which other servers' endpoints take, too."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from phi3_serve.api.fields import OnlyAssistantMaySayNothing, nothing
from phi3_serve.core import Conversation, Message
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
        if isinstance(given, dict) and (media := MEDIA.get(str(given.get("type")))):
            raise PydanticCustomError(
                "not_offered", "{media} are not offered: the model reads text only.", {"media": media}
            )
        return given


class ChatCompletionMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    """The author of this turn; developer is OpenAI's newer word for system."""
    content: Annotated[Characters | list[TextPart] | None, OnlyAssistantMaySayNothing]
    """The text. Text that spells a control token stays text. Null in an assistant's turn is an empty text."""
    name: Characters | None = None
    """The name of the author. It has an effect if the checkpoint's chat template uses it; Phi-3's does not."""
    reasoning_content: Characters | None = None
    """What an assistant thought first. It has an effect if the checkpoint's chat template uses it; Phi-3's does not."""
    reasoning: Any = None
    """Without effect: another name of reasoning_content."""
    annotations: Any = None
    """Without effect: citations in an earlier answer."""
    cache_control: Any = None
    """Without effect: the server finds common prefixes itself."""
    refusal: Annotated[None, nothing("a refusal is not a text that the model has said")] = None
    """Always null."""
    audio: Annotated[None, nothing("the model reads text only")] = None
    """Always null."""
    tool_calls: Annotated[list[Any] | None, Len(0, 0), nothing("tools are not offered")] = None
    """Always empty."""
    function_call: Annotated[None, nothing("tools are not offered")] = None
    """Always null."""

    @property
    def text(self) -> str:
        """The content in one piece."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content or ())


ChatCompletionMessages = Annotated[list[ChatCompletionMessage], Len(1, 1024)]


def conversation(messages: list[ChatCompletionMessage]) -> Conversation:
    """``messages`` as the replica takes them."""
    return Conversation(tuple(map(_message, messages)))


def _message(message: ChatCompletionMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    return Message(role, message.text, message.name, message.reasoning_content)
