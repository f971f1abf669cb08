"""Generate parameters with which a real model says a given text, whatever it has learned."""

from typing import Any

from starlette.testclient import TestClient


def saying(client: TestClient, text: str) -> dict[str, Any]:
    """For greedy search: each token is far likelier than all others behind those before it."""
    ids = token_ids(client, {"content": text}) + token_ids(client, {"prompt": "<|end|>"})[-1:]
    return {
        "do_sample": False,
        "sequence_bias": [(ids[: number + 1], 1000.0 + 1000.0 * number) for number in range(len(ids))],
    }


def token_ids(client: TestClient, fields: dict[str, Any]) -> list[int]:
    """Of a text."""
    tokens: list[int] = client.post("/tokenize", json=fields).json()["tokens"]
    return tokens
