"""How a checkpoint writes conversations: with its own chat template, or with Phi-3's if it has none."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from phi3_serve.core.prompt import Message, Role
from phi3_serve.errors import CheckpointError, InvalidRequest
from phi3_serve.text.jinja_template import JinjaTemplate
from phi3_serve.text.phi3_template import PHI3_TEMPLATE, ROLE_TOKENS
from phi3_serve.text.traced import Traced

SYSTEM_TOKEN = ROLE_TOKENS["system"]
_EXAMPLES: Sequence[Sequence[Role]] = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user"),
    ("user", "assistant"),
    ("user",),
)


class ChatTemplate:
    """The template of one checkpoint. Threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compile the template that transformers has found for ``tokenizer``.

        Raises:
            CheckpointError: it has an error of syntax, or there are several and none is named default.
        """
        self.file = _file(Path(tokenizer.name_or_path))
        own = _own_source(tokenizer, self.file)
        self.source = PHI3_TEMPLATE if own is None else own
        self.is_own = own is not None
        variables = tokenizer.special_tokens_map
        self._template = JinjaTemplate(self.source, variables, file=self.file)
        self._phi3 = JinjaTemplate(PHI3_TEMPLATE, variables, file=self.file)
        self._has_system_token = SYSTEM_TOKEN in tokenizer.get_vocab()
        self._is_phi3_without_system = self.is_own and self._has_system_token and self._agrees_with_phi3()

    @property
    def origin(self) -> str:
        """Where the template comes from, in words."""
        return f"the chat template of {self.file}" if self.is_own else "Phi-3's chat template; the checkpoint has none"

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Traced:
        """The conversation as text. No system message is left out.

        It ends where an answer of the assistant begins, without ``add_generation_prompt`` behind the last message, and
        with ``continue_final_message`` within it.

        Raises:
            InvalidRequest: the template does not take these messages.
        """
        if continue_final_message:
            return self._open_ended(messages)
        if not self.is_own and not self._has_system_token and any(m.role == "system" for m in messages):
            raise InvalidRequest(
                f"This model's tokenizer has no {SYSTEM_TOKEN}, so it takes no system message.", "prompt"
            )
        rendered = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        if self.source == PHI3_TEMPLATE:  # it writes every message
            return rendered
        left_out = self._left_out(messages)
        if left_out is None:
            return rendered
        if self._is_phi3_without_system:
            return self._phi3.render(messages, add_generation_prompt=add_generation_prompt)
        raise InvalidRequest(
            f"This model's chat template leaves out the system message at `messages.{left_out}`; put its text into a "
            "message of the user.",
            "prompt",
        )

    def _open_ended(self, messages: Sequence[Message]) -> Traced:
        """The conversation up to the end of what the last message says (``render_jinja_template`` of transformers)."""
        mark = f"{_word()} "
        *others, last = messages
        rendered = self.render([*others, replace(last, content=last.content + mark)], add_generation_prompt=False)
        if (end := rendered.rfind(mark.rstrip())) < 0:
            raise InvalidRequest(
                "This model's chat template leaves out the last message, so an answer cannot continue it.", "prompt"
            )
        is_verbatim = rendered[end : end + len(mark)] == mark  # otherwise the template strips contents
        said = cast(Traced, rendered[:end])
        return said if is_verbatim else said.rstrip()

    def examples(self) -> list["Example"]:
        """Conversations with every role that the template takes."""
        found = (self._example(*roles) for roles in _EXAMPLES)
        return [example for example in found if example is not None]

    def _example(self, *roles: Role) -> "Example | None":
        """A conversation of ``roles`` as the template writes it; None if the template refuses it."""
        messages = [Message(role, _word()) for role in roles]
        try:
            return Example(messages, self._template.render(messages))
        except InvalidRequest:
            return None

    def _left_out(self, messages: Sequence[Message]) -> int | None:
        """The number of the first system message that the template does not write."""
        systems = [n for n, m in enumerate(messages) if m.role == "system" and m.content.strip()]
        if not systems:
            return None
        # Words, not the contents: a content can also occur elsewhere in the conversation.
        words = [replace(m, content=_word() if m.content.strip() else m.content) for m in messages]
        try:
            rendered = self._template.render(words)
        except InvalidRequest:  # the template tests contents, and has taken the real ones
            return None
        end = 0
        for n in systems:  # most templates keep the order, so that one pass finds them all
            word = words[n].content
            if (at := rendered.find(word, end)) < 0 and (at := rendered.find(word)) < 0:
                return n
            end = at
        return None

    def _agrees_with_phi3(self) -> bool:
        """Whether the template writes the turns of user and assistant as Phi-3's does."""
        example = self._example("user", "assistant", "user")
        return example is not None and example.text == self._phi3.render(example.messages)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation whose contents are random words, and what a template makes of it."""

    messages: Sequence[Message]
    text: Traced


def _word() -> str:
    """Digits, which no filter for upper or lower case changes."""
    return str(secrets.randbelow(10**18))


def _own_source(tokenizer: PreTrainedTokenizerBase, file: str) -> str | None:
    """The template that ``apply_chat_template`` takes."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise CheckpointError(f"{file}: chat template: there are {', '.join(template)}, and none is named default")
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file}: chat template: it must be a text")
    return template


def _file(directory: Path) -> str:
    """The file that transformers reads a chat template from; it prefers the first. A GGUF file has its own."""
    if directory.is_file():
        return str(directory)
    files = [directory / "chat_template.jinja", directory / "tokenizer_config.json"]
    return str(next((file for file in files if file.exists()), files[-1]))
