"""KAITO's wire format: the bodies of requests and responses.

Source: kaito at 870a79778, presets/workspace/inference/text-generation/inference_api.py, and its clients. Some of them
send fields that KAITO did not know. A field that nothing knows has no effect, and the answer has a warning.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field

from phi3_serve.api.body_with_parameters import BodyWithParameters
from phi3_serve.api.chat_messages import ChatCompletionMessage
from phi3_serve.api.fields import GenerateKwargs, nothing, null_is
from phi3_serve.api.refused_fields import unknown_fields
from phi3_serve.parameters import Characters, GenerationParameters


class ChatMessage(ChatCompletionMessage):
    """One turn of a conversation, as in OpenAI's chat. Fields that are not known have no effect."""

    model_config = ConfigDict(extra="ignore")

    images: Annotated[list[Any] | None, Len(0, 0), nothing("the model reads text only")] = None
    """Always empty."""


class ChatRequest(BodyWithParameters):
    """A prompt or a conversation, and how to answer it."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "prompt": "<|user|> What is the meaning of life?<|end|><|assistant|>",
                    "return_full_text": False,
                    "clean_up_tokenization_spaces": False,
                    "prefix": None,
                    "handle_long_generation": None,
                    "generate_kwargs": {
                        "max_length": 200,
                        "do_sample": True,
                        "temperature": 1.0,
                        "top_k": 10,
                    },
                }
            ]
        },
    )

    prompt: Characters | None = None
    """The text to continue, exactly as given. Text that spells a control token becomes the control token."""
    messages: Annotated[list[ChatMessage], Len(0, 1024)] | None = None
    """A conversation instead of a prompt. The checkpoint's chat template is applied, and Result is the reply alone. The
    turns may have any order that the template takes. A system message that it leaves out, as Phi-3-medium's does, is
    written as in Phi-3-mini, or refused. Earlier calls of tools and their results are read; no tools are offered."""
    return_full_text: Annotated[bool, null_is(True)] = True
    """Return the prompt and the answer (true) or the answer alone (false)."""
    clean_up_tokenization_spaces: Annotated[bool, null_is(False)] = False
    """Remove spaces before punctuation and contractions, as transformers 4.55 did."""
    prefix: Characters | None = None
    """Text before the prompt. It is not counted by max_length and not part of Result."""
    handle_long_generation: Literal["hole"] | None = None
    """With "hole", a prompt that is too long for prompt and answer to fit into the context loses its start."""
    generate_kwargs: GenerateKwargs | None = Field(default_factory=GenerationParameters)
    """Generate parameters by name. A parameter that is not given has KAITO's default: max_length 200, do_sample true,
    top_k 10 and so on. If generate_kwargs itself is null, the model's own generation config applies instead."""
    stream: Annotated[bool, null_is(False)] = False
    """Stream the answer as server-sent events."""
    model: str | None = None
    """The model that answers; by default the config's default_model. The model in the path /{model}/chat wins."""

    @classmethod
    def refuse_fields(cls, body: Mapping[str, Any]) -> Sequence[str]:
        """See the base class."""
        return unknown_fields(body, cls.model_fields)

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it."""
        return {**super().names_sent, "prompt": "messages" if self.messages else "prompt"}


class ChatResponse(BaseModel):
    """The answer to a prompt or a conversation."""

    Result: str = Field(description="The text of the answer. Several sequences are joined without a separator.")
    Results: list[str] | None = Field(None, description="The sequences one by one, if there are several.")
    Details: dict[str, Any] | None = Field(
        None,
        description="Token ids, finish reasons, scores; with return_dict_in_generate, output_scores or top_logprobs.",
    )
    warnings: list[str] | None = Field(None, description="Parameters that could not have their effect, if there are.")


class MessageResponse(BaseModel):
    """KAITO's ``GET /``."""

    message: str = Field(default="Server is running", description="Always this text.")


class HealthStatus(BaseModel):
    """KAITO's ``GET /health``."""

    status: str = Field(default="Healthy", description="Always this text.")
