"""Get JSON that fits a model of pydantic, and one of several texts.

phi-3-tiny was not taught JSON: its values have the right form and make no sense. The real variants know better.
"""

import os

from openai import OpenAI
from pydantic import BaseModel, Field

URL = os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PHI3_SERVE_MODEL", "phi-3-tiny")


class City(BaseModel):
    """What the answer is about."""

    name: str = Field(max_length=30)
    country: str = Field(max_length=30)
    is_capital: bool


def main() -> None:
    """Ask twice."""
    with OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("PHI3_SERVE_API_KEY", "none")) as client:
        parsed = client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            response_format=City,
            temperature=0,
        )
        print(repr(parsed.choices[0].message.parsed))

        # regex, grammar and json_schema go the same way, and into the body of /chat, too.
        chosen = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Is ice cold?"}],
            temperature=0,
            extra_body={"choice": ["Yes", "No"]},
        )
        print(chosen.choices[0].message.content)


if __name__ == "__main__":
    main()
