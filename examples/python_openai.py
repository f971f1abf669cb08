"""Use OpenAI's SDK: a plain answer, a stream, and a generate parameter that OpenAI does not have."""

import os

from openai import OpenAI

URL = os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PHI3_SERVE_MODEL", "phi-3-tiny")


def main() -> None:
    """Ask three times."""
    with OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("PHI3_SERVE_API_KEY", "none")) as client:
        plain = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
        print(plain.choices[0].message.content)

        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count to ten"}], max_tokens=60, stream=True
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()

        # generate_kwargs takes every parameter of transformers' generate.
        beams = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Name three fruits"}],
            max_tokens=40,
            extra_body={"generate_kwargs": {"do_sample": False, "num_beams": 4, "no_repeat_ngram_size": 3}},
        )
        print(beams.choices[0].message.content)


if __name__ == "__main__":
    main()
