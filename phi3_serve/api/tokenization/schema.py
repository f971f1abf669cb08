"""The bodies of ``/tokenize``, ``/detokenize`` and ``/apply-template``, in the forms of vLLM and of llama.cpp at once.

Sources: vLLM at 030ea52e (vllm/entrypoints/serve/tokenize/protocol.py), llama.cpp at 00dc8057 (tools/server/README.md).
"""

from typing import Annotated, Any

from annotated_types import Ge, Len
from pydantic import BaseModel, ConfigDict, Field

from phi3_serve.api.body_without_parameters import BodyWithoutParameters
from phi3_serve.api.chat_messages import ChatCompletionMessages
from phi3_serve.api.fields import number
from phi3_serve.api.function_tools import OpenAIToolFields
from phi3_serve.parameters import MAX_TOKENS_LISTED, Characters


class TokenizerBody(BodyWithoutParameters):
    """The fields of all three."""

    model: str | None = None
    """The model whose tokenizer is used; by default the config's default_model."""


class TokenizeRequest(OpenAIToolFields, TokenizerBody):
    """A text or a conversation that becomes token ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Hello world"}]})

    prompt: Characters | None = None
    """The text. Text that spells a control token becomes the control token."""
    content: Characters | None = None
    """llama.cpp's name of prompt."""
    messages: ChatCompletionMessages | None = None
    """A conversation instead of a text; the checkpoint's chat template writes it."""
    add_generation_prompt: bool | None = None
    """Whether messages are written up to where the next answer begins; by default true, if the last message is not
    continued."""
    continue_final_message: bool = False
    """Whether messages are written up to the end of the text of the last one."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer puts its special tokens around the text, such as `<s>` at the start. By default true for
    prompt, and false for content and messages."""
    add_special: bool | None = None
    """llama.cpp's name of add_special_tokens."""
    parse_special: bool = True
    """false: control tokens that a text spells stay text. In messages they always do."""
    return_token_strs: bool | None = None
    """true: the answer has `token_strs`, the tokens by their names in the tokenizer, as in vLLM."""
    with_pieces: bool = False
    """true: `tokens` has objects with `id` and `piece`, as in llama.cpp. A piece that is no valid UTF-8 is a list of
    bytes."""


class TokenizeResponse(BaseModel):
    """Token ids."""

    count: int = Field(description="The number of tokens.")
    max_model_len: int = Field(description="Tokens of prompt and answer that the model takes.")
    tokens: list[int] | list[dict[str, Any]] = Field(description="The token ids; with with_pieces also their pieces.")
    token_strs: list[str] | None = Field(None, description="The names of the tokens, if they were asked for.")


class DetokenizeRequest(TokenizerBody):
    """Token ids that become a text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [306, 307, 308]}]})

    tokens: Annotated[list[Annotated[int, Ge(0), number("tokens")]], Len(0, MAX_TOKENS_LISTED)]
    """The token ids."""


class DetokenizeResponse(BaseModel):
    """A text, under the names of both servers."""

    prompt: str = Field(description="The text, with control tokens by their names.")
    content: str = Field(description="The same, as llama.cpp calls it.")


class ApplyTemplateRequest(OpenAIToolFields, TokenizerBody):
    """A conversation that becomes a text."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is a castle?"}]}]}
    )

    messages: ChatCompletionMessages
    """The conversation."""
    add_generation_prompt: bool | None = None
    """Whether the text goes up to where the next answer begins; by default true, if the last message is not
    continued."""
    continue_final_message: bool = False
    """Whether the text ends with that of the last message."""


class ApplyTemplateResponse(BaseModel):
    """What the checkpoint's chat template writes."""

    prompt: str = Field(
        description="The text. As a prompt it has the token ids of the messages, unless they spell a control token."
    )
