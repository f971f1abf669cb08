"""``make test-clients``: clients of other projects, unchanged, against phi-3-tiny; writes docs/clients.md.

Each client is a program of its own, which runs in a virtual environment of its own and ends with an error if something
is not as it should be. Versions: ``requirements*.txt`` and ``javascript/package.json``. ``python -m tests.clients
ENVIRONMENT NAME ...`` runs only the clients with these names, and writes nothing.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from phi3_serve.api.app import create_app
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.config.app import AppConfig
from phi3_serve.core.variant_state import VariantState
from phi3_serve.launch.proxy import free_port
from tests.support import LocalBackend, engine_of, local_replica

HERE = Path(__file__).parent
MODEL = "phi-3-tiny"
TIMEOUT_S = 900
# The ends of the names of virtual environments.
BENCHMARKS, OLDER_SDK = "-benchmarks", "-openai-2"


@dataclass(frozen=True, slots=True)
class Client:
    """A program, and the package whose version the page shows."""

    script: str
    package: str  # "" if the program sends what the client sends, without the client
    environment: str = ""  # what its virtual environment is called behind the name that is given

    def command(self, environment: str) -> list[str]:
        """What runs the script."""
        if self.script.endswith(".mjs"):
            return ["node", str(HERE / self.script)]
        return [self.python(environment), str(HERE / self.script)]

    def python(self, environment: str) -> str:
        """The interpreter of the virtual environment."""
        return f"{environment}{self.environment}/bin/python"

    def version(self, environment: str) -> str:
        """The version of the package that is installed."""
        if self.script.endswith(".mjs"):
            of_package = HERE / "javascript" / "node_modules" / self.package / "package.json"
            return str(json.loads(of_package.read_text())["version"])
        if not self.package:
            return ""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        command = [self.python(environment), "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def about(self) -> tuple[str, str]:
        """The name of the client, and what is tried, as the first comment of the script says."""
        text = (HERE / self.script).read_text()
        about = re.match(r'"""(.*?)"""|// (.*?)\n', text, re.DOTALL)
        assert about is not None
        client, _, tried = " ".join((about[1] or about[2]).split()).partition(": ")
        return client, tried


CLIENTS = (
    Client("openai_client.py", "openai"),
    Client("javascript/openai.mjs", "openai"),
    Client("anthropic_client.py", "anthropic"),
    Client("ollama_client.py", "ollama"),
    Client("javascript/ollama.mjs", "ollama"),
    Client("javascript/ai.mjs", "ai"),
    Client("langchain_client.py", "langchain-openai"),
    Client("litellm_client.py", "litellm"),
    Client("instructor_client.py", "instructor", OLDER_SDK),
    Client("pydantic_ai_client.py", "pydantic-ai-slim"),
    Client("llama_index_client.py", "llama-index-llms-openai-like", OLDER_SDK),
    Client("haystack_client.py", "haystack-ai"),
    Client("openai_agents_client.py", "openai-agents"),
    Client("autogen_client.py", "autogen-agentchat"),
    Client("smolagents_client.py", "smolagents"),
    Client("llm_client.py", "llm"),
    Client("lm_eval_client.py", "lm_eval"),
    Client("guidellm_client.py", "guidellm", BENCHMARKS),
    Client("aiperf_client.py", "aiperf", BENCHMARKS),
    Client("vllm_benchmark_client.py", ""),
    Client("sglang_benchmark_client.py", ""),
)
PAIRS = (
    ("<|user|> What is 2+2?<|end|><|assistant|>", " 4"),
    ("<|user|> What is 2+2?<|end|><|assistant|>", " The knight"),
    ("The capital of France is", " Paris."),
    ("1, 2, 3,", " 4, 5, 6"),
    ("Once upon a time,", " there was a knight who"),
)


def main(environment: str, names: Sequence[str]) -> int:
    """Run the clients, all if there are no ``names``; returns the number of those that failed."""
    clients = [client for client in CLIENTS if not names or any(name in client.script for name in names)]
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
        rows = [_run(client, environment, f"http://127.0.0.1:{port}", expected) for client in clients]
    server.should_exit = True
    thread.join()
    engine_of(replica).close()
    if not names:
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


def _run(client: Client, environment: str, url: str, expected: Path) -> tuple[str, str, str, str]:
    """The client, its version, what is tried, and why it failed; nothing if it did not."""
    name, tried = client.about()
    print(f"{name} ... ", end="", flush=True)
    command = [*client.command(environment), url, str(expected), MODEL]
    try:
        version = client.version(environment)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        failure = "" if done.returncode == 0 else _reason(done.stderr)
    except subprocess.TimeoutExpired:
        failure = f"no end after {TIMEOUT_S} s"
    except (OSError, subprocess.CalledProcessError):
        version, failure = "", "is not installed"
    print(failure or "runs", flush=True)
    return name, version, tried, failure


def _reason(output: str) -> str:
    """The line of ``output`` that says which error ended a program."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["no message"])[-1][:500]


def _page(rows: list[tuple[str, str, str, str]]) -> str:
    cells = [[client, version, tried, failure or "runs"] for client, version, tried, failure in rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]
    return "\n".join(
        [
            "# Clients",
            "",
            "`make test-clients` runs these clients, unchanged, against phi-3-tiny, and writes this page.",
            "",
            "| client | version | what is tried | result |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
