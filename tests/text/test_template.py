from phi3_serve.core import Message, Special, Text
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
