"""``make test-clients``: clients of other projects, unchanged, against phi-3-tiny; writes docs/clients.md.

Each client is a program of its own, which runs in a virtual environment of its own and ends with an error if something
is not as it should be. Versions: ``requirements.txt``.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import uvicorn

from phi3_serve.api.app import create_app
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.config import AppConfig
from phi3_serve.core import VariantState
from phi3_serve.launch.proxy import free_port
from tests.support import LocalBackend, engine_of, local_replica

HERE = Path(__file__).parent
MODEL = "phi-3-tiny"
TIMEOUT_S = 300
PACKAGES = {
    "instructor_client.py": "instructor",
    "langchain_client.py": "langchain-openai",
    "litellm_client.py": "litellm",
    "llm_client.py": "llm",
    "lm_eval_client.py": "lm_eval",
}
PAIRS = (
    ("<|user|> What is 2+2?<|end|><|assistant|>", " 4"),
    ("<|user|> What is 2+2?<|end|><|assistant|>", " The knight"),
    ("The capital of France is", " Paris."),
    ("1, 2, 3,", " 4, 5, 6"),
    ("Once upon a time,", " there was a knight who"),
)


def main(python: str) -> int:
    """Run all clients with ``python``; returns the number of those that failed."""
    replica = local_replica(MODEL, str(EMBEDDED_TINY), max_waiting=64)
    backend = LocalBackend(replica)
    backend.state_of = {MODEL: VariantState("ready")}
    app = create_app(backend, AppConfig.model_validate({"models": [{"name": MODEL}]}))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with tempfile.TemporaryDirectory() as directory:
        expected = Path(directory) / "expected.json"
        expected.write_text(json.dumps(_expected()))
        rows = [_run(python, script, f"http://127.0.0.1:{port}", expected) for script in PACKAGES]
    server.should_exit = True
    thread.join()
    engine_of(replica).close()
    (HERE.parent.parent / "docs" / "clients.md").write_text(_page(rows))
    return sum(failure != "" for _, _, _, failure in rows)


def _expected() -> dict[str, Any]:
    """The log-likelihoods of ``PAIRS`` by transformers."""
    from transformers import AutoTokenizer, Phi3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_TINY)
    model = Phi3ForCausalLM.from_pretrained(EMBEDDED_TINY, dtype="float32")
    found = []
    for context, continuation in PAIRS:
        whole = tokenizer(context + continuation).input_ids
        num_context = len(tokenizer(context).input_ids)
        with torch.inference_mode():
            logprobs = model(torch.tensor([whole])).logits[0, :-1].float().log_softmax(-1)
        chosen = [logprobs[at - 1, whole[at]].item() for at in range(num_context, len(whole))]
        greedy = [logprobs[at - 1].argmax().item() == whole[at] for at in range(num_context, len(whole))]
        pair = {"context": context, "continuation": continuation}
        found.append({**pair, "loglikelihood": sum(chosen), "is_greedy": all(greedy)})
    return {"model": MODEL, "tokenizer": str(EMBEDDED_TINY), "loglikelihoods": found}


def _run(python: str, script: str, url: str, expected: Path) -> tuple[str, str, str, str]:
    """The client, its version, what is tried, and why it failed; nothing if it did not."""
    about = re.match(r'"""(.*?)"""', (HERE / script).read_text(), re.DOTALL)
    assert about is not None
    command = [python, str(HERE / script), url, str(expected), MODEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        failure = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired:
        failure = f"no end after {TIMEOUT_S} s"
    print(f"{script}: {failure or 'ok'}", flush=True)
    client, _, tried = " ".join(about[1].split()).partition(": ")
    return client, _version(python, PACKAGES[script]), tried, failure


def _version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _page(rows: list[tuple[str, str, str, str]]) -> str:
    lines = [f"| {client} | {version} | {tried} | {failure or 'runs'} |" for client, version, tried, failure in rows]
    return "\n".join(
        [
            "# Clients",
            "",
            "`make test-clients` runs these clients, unchanged, against phi-3-tiny, and writes this page. The official",
            "SDK of OpenAI is part of `make test`.",
            "",
            "| client | version | what is tried | result |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
