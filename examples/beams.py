"""Search with four beams, and print the two best answers with their scores."""

import os

import requests

URL = os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PHI3_SERVE_MODEL", "phi-3-tiny")
HEADERS = {"Authorization": f"Bearer {os.environ.get('PHI3_SERVE_API_KEY', 'none')}"}


def main() -> None:
    """Print one line for each returned sequence."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a joke"}],
        "generate_kwargs": {
            "do_sample": False,
            "num_beams": 4,
            "num_return_sequences": 2,
            "max_new_tokens": 40,
            "length_penalty": 1.0,
            "no_repeat_ngram_size": 3,
            "output_scores": True,
        },
    }
    response = requests.post(f"{URL}/chat", json=body, headers=HEADERS, timeout=600)
    response.raise_for_status()
    answer = response.json()
    for text, sequence in zip(answer["Results"], answer["Details"]["sequences"], strict=True):
        print(f"{sum(sequence['scores']):8.3f}  {text}")


if __name__ == "__main__":
    main()
