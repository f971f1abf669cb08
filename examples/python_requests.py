"""Ask one question with the library requests, and wait when the server says so."""

import os
import sys
import time

import requests

URL = os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PHI3_SERVE_MODEL", "phi-3-tiny")
HEADERS = {"Authorization": f"Bearer {os.environ.get('PHI3_SERVE_API_KEY', 'none')}"}
MAX_TRIES = 10


def chat(question: str) -> str:
    """The answer to ``question``."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "generate_kwargs": {"do_sample": False, "max_new_tokens": 100},
    }
    for _ in range(MAX_TRIES):
        response = requests.post(f"{URL}/chat", json=body, headers=HEADERS, timeout=600)
        if "Retry-After" not in response.headers:  # 429: too many requests; 503: the model is loading
            break
        time.sleep(float(response.headers["Retry-After"]))
    if not response.ok:
        sys.exit(f"HTTP {response.status_code}: {response.json()['detail']}")
    answer: str = response.json()["Result"]
    return answer


if __name__ == "__main__":
    print(chat("What is the capital of France?"))
