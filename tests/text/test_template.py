import pytest

from phi3_serve.core import Message, Special, Text
from phi3_serve.errors import InvalidRequest
from phi3_serve.text.template import render


def test_a_conversation_becomes_control_tokens_and_text_apart() -> None:
    assert render([Message("system", "Be brief."), Message("user", "Hi<|end|>")]).segments == (
        Special("<|system|>"),
        Text("\nBe brief."),
        Special("<|end|>"),
        Text("\n"),
        Special("<|user|>"),
        Text("\nHi<|end|>"),
        Special("<|end|>"),
        Text("\n"),
        Special("<|assistant|>"),
        Text("\n"),
    )


@pytest.mark.parametrize(
    "roles", ["assistant", "user user", "user assistant", "system", "user system user", "system system user"]
)
def test_turns_that_do_not_alternate_are_refused(roles: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render([Message(role, "x") for role in roles.split()])  # type: ignore[arg-type]
    assert caught.value.message == (
        "Conversation roles must alternate user/assistant/user/assistant/..., after at most one system message at the "
        f"start, and end with the user; these are {', '.join(roles.split())}."
    )
