"""smolagents: its model for servers that speak OpenAI's API, plain and streamed, and an agent that writes code."""

import sys

from smolagents import CodeAgent, OpenAIModel

TURNS = [
    {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": [{"type": "text", "text": "What is 2+2?"}]},
]


def check(url: str, model: str) -> None:
    """The system prompt of a ``CodeAgent`` is longer than the context of phi-3-tiny, so that it gets a short one.

    phi-3-tiny writes no code that runs. The agent asks, tells the model so, and asks for a last answer in words.
    """
    options = {"model_id": model, "api_base": f"{url}/v1", "api_key": "none", "temperature": 0}
    tiny = OpenAIModel(**options, max_tokens=12)
    answer = tiny.generate(TURNS)
    assert answer.content
    assert answer.token_usage.output_tokens > 0
    assert "".join(part.content or "" for part in tiny.generate_stream(TURNS)) == answer.content
    assert tiny.generate(TURNS, stop_sequences=["\n"]).content
    for structured in (False, True):
        agent = CodeAgent(
            tools=[],
            model=OpenAIModel(**options, max_tokens=60),
            max_steps=2,
            verbosity_level=0,
            use_structured_outputs_internally=structured,
        )
        agent.prompt_templates["system_prompt"] = "Write Python."
        result = agent.run("What is 2+2?", return_full_result=True)
        assert result.token_usage.output_tokens > 0


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
