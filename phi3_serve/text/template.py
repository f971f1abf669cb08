"""Phi-3's chat template as a pure function: messages to segments, with no tokenizer and no Jinja.

Source: ``chat_template`` in ``tokenizer_config.json`` of the Phi-3 repositories. The medium variants' own
template has no system turn; here the system turn is rendered for them as for the others, never dropped.
"""

from collections.abc import Sequence

from phi3_serve.core import Conversation, Message, Special, Text

END = "<|end|>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_TOKENS = (*ROLE_TOKENS.values(), END)


def render(messages: Sequence[Message]) -> Conversation:
    """The conversation, up to where the assistant's next answer begins. The turns may have any order."""
    segments: list[Special | Text] = []
    for message in messages:
        segments += [
            Special(ROLE_TOKENS[message.role]),
            Text(f"\n{message.content}"),
            Special(END),
            Text("\n"),
        ]
    segments += [Special(ROLE_TOKENS["assistant"]), Text("\n")]
    return Conversation(tuple(segments))
