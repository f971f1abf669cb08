"""Print an answer of POST /chat while it is generated."""

import json
import os
from collections.abc import Iterator

import requests

URL = os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PHI3_SERVE_MODEL", "phi-3-tiny")
HEADERS = {"Authorization": f"Bearer {os.environ.get('PHI3_SERVE_API_KEY', 'none')}"}


def deltas(question: str) -> Iterator[str]:
    """The pieces of the answer. Each event is ``data: JSON``; the last one is ``data: [DONE]``."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "stream": True}
    with requests.post(f"{URL}/chat", json=body, headers=HEADERS, stream=True, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "detail" in event:  # the request failed after the stream began
                raise RuntimeError(event["detail"])
            if "Delta" in event:
                yield event["Delta"]


if __name__ == "__main__":
    for delta in deltas("How to explain Internet for a medieval knight?"):
        print(delta, end="", flush=True)
    print()
