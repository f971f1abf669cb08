"""llm, the command of Simon Willison: a model of ``extra-openai-models.yaml``, plain, streamed, and with a history."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def check(url: str, model: str) -> None:
    """Run the command as its documentation describes for servers that speak OpenAI's API."""
    command = Path(sys.executable).parent / "llm"
    with tempfile.TemporaryDirectory() as directory:
        models = f"- model_id: phi\n  model_name: {model}\n  api_base: {url}/v1\n"
        (Path(directory) / "extra-openai-models.yaml").write_text(models)
        environment = {**os.environ, "LLM_USER_PATH": directory, "OPENAI_API_KEY": "none"}

        def ask(*arguments: str) -> str:
            done = subprocess.run(
                [command, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        greedy = ("-m", "phi", "-o", "temperature", "0", "-o", "max_tokens", "12")
        answer = ask("What is 2+2?", *greedy)
        assert answer
        assert ask("What is 2+2?", *greedy, "--no-stream") == answer
        assert ask("-c", "And 3+3?", "-o", "temperature", "0")


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[3])
