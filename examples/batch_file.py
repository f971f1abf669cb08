"""Answer a file of requests: ``python examples/batch_file.py IN.jsonl OUT.jsonl [--concurrency 16]``.

Each line of IN is a body of POST /chat, with an optional ``id``. OUT has one line for each, in the same order:
``{"id": ..., "result": ...}`` or ``{"id": ..., "error": ...}``.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

URL = os.environ.get("PHI3_SERVE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("PHI3_SERVE_MODEL", "phi-3-tiny")
HEADERS = {"Authorization": f"Bearer {os.environ.get('PHI3_SERVE_API_KEY', 'none')}"}
MAX_TRIES = 20


def answer(line: str) -> dict[str, Any]:
    """The output for one input line."""
    body = json.loads(line)
    done = {"id": body.pop("id", None)}
    for _ in range(MAX_TRIES):
        response = requests.post(f"{URL}/chat", json={"model": MODEL, **body}, headers=HEADERS, timeout=600)
        if "Retry-After" not in response.headers:  # 429: too many requests; 503: the model is loading
            break
        time.sleep(float(response.headers["Retry-After"]))
    if response.ok:
        return done | {"result": response.json()["Result"]}
    return done | {"error": f"HTTP {response.status_code}: {response.json()['detail']}"}


def main() -> None:
    """Send at most ``--concurrency`` requests at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    lines = options.input.read_text(encoding="utf-8").splitlines()
    with ThreadPoolExecutor(options.concurrency) as pool, options.output.open("w", encoding="utf-8") as output:
        for done in pool.map(answer, lines):
            output.write(json.dumps(done, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
