"""Chat templates in Jinja, rendered so that the text of the template is told apart from the text of users.

The code that Jinja generates has every literal of the template as a ``Traced`` string. Contents of messages stay plain
strings, so tests, slices and filters on them work as in transformers.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateSyntaxError, nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment
from jinja2.filters import make_attrgetter
from transformers.utils.chat_template_utils import _compile_jinja_template

from phi3_serve.core.prompt import Message
from phi3_serve.errors import CheckpointError, InvalidRequest
from phi3_serve.text.traced import Traced, joined, written

MAX_REASON_LENGTH = 300  # characters


class JinjaTemplate:
    """A compiled template. Threads may share it."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any], *, file: str) -> None:
        """``special_tokens``: what the template knows as ``bos_token`` and so on. ``file`` is named in errors.

        Raises:
            CheckpointError: the template has an error of syntax.
        """
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"{file}: chat template: line {error.lineno}: {error.message}") from None
        except SyntaxError as error:  # of the generated code, when blocks are nested too deeply
            raise CheckpointError(f"{file}: chat template: {error.msg}") from None
        self._variables = {name: _as_written(token) for name, token in special_tokens.items()}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Traced:
        """The conversation as text, up to where the next answer begins.

        Raises:
            InvalidRequest: the template does not take these messages.
        """
        try:
            rendered = self._template.render(
                messages=[_for_template(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception as error:  # also of Python: a template can add a number to a text
            reason = str(error)[:MAX_REASON_LENGTH]  # a template can put a whole message into it
            raise InvalidRequest(f"This model's chat template refuses the messages: {reason}", "prompt") from None
        return cast(Traced, rendered)


def _for_template(message: Message) -> dict[str, str]:
    """``message`` as transformers gives it to a template (``_alias_reasoning_fields``)."""
    fields = {"role": written(message.role), "content": message.content, "name": message.name}
    reasoning = {"reasoning_content": message.reasoning_content, "thinking": message.reasoning_content}
    return {name: value for name, value in (fields | reasoning).items() if value is not None}


def _as_written(value: Any) -> Any:
    return [_as_written(each) for each in value] if isinstance(value, list) else written(str(value))


class _TracingGenerator(CodeGenerator):
    """Generates code in which literals are written, and in which joining keeps origins."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.written({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(f"environment.written({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.written({''.join(group)!r})"


@functools.cache
def _environment() -> Environment:
    """The sandboxed environment of transformers, with ``_TracingGenerator``."""
    environment: Any = _compile_jinja_template("").environment.overlay(optimized=False)
    environment.code_generator_class = _TracingGenerator
    environment.concat = joined
    environment.written = functools.lru_cache(written)
    environment.filters = {**environment.filters, "join": _join}
    return cast(Environment, environment)


@pass_environment
def _join(environment: Environment, values: Any, separator: str = "", attribute: str | int | None = None) -> Traced:
    """Jinja's filter ``join``."""
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return Traced(separator, getattr(separator, "_written", ())).join(map(str, values))
