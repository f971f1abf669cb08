"""LiteLLM: chat and text completions, streams, usage, and its own classes of errors."""

import sys

import litellm


def check(url: str, model: str) -> None:
    """Call through the provider for servers that speak OpenAI's API."""
    options = {"api_base": f"{url}/v1", "api_key": "none"}
    messages = [{"role": "user", "content": "What is 2+2?"}]
    asked = {"model": f"openai/{model}", "messages": messages, "temperature": 0, "max_tokens": 12, **options}
    answer = litellm.completion(**asked)
    text = answer.choices[0].message.content
    assert text
    assert answer.usage.completion_tokens > 0
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert any(getattr(chunk, "usage", None) for chunk in chunks)
    scored = litellm.completion(**asked, logprobs=True, top_logprobs=2)
    assert scored.choices[0].logprobs.content
    continued = litellm.text_completion(
        model=f"text-completion-openai/{model}", prompt="1, 2, 3,", max_tokens=4, temperature=0, **options
    )
    assert continued.choices[0].text
    message = ""
    try:
        litellm.completion(**{**asked, "model": "openai/nothing"})
    except litellm.NotFoundError as error:
        message = str(error)
    assert "served are" in message


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
