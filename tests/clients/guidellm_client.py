"""GuideLLM: its benchmark of chat, completions and responses, with texts that it makes, one by one and several at once."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def check(url: str, tokenizer: str, model: str) -> None:
    """Run the command; its report counts what was answered."""
    for route in ("chat/completions", "completions", "responses"):
        for profile in ("synchronous", "concurrent,streams=3"):
            _benchmark(f"kind=openai_http,target={url},model={model},request_format=/v1/{route}", tokenizer, profile)


def _benchmark(backend: str, tokenizer: str, profile: str) -> None:
    command = Path(sys.executable).parent / "guidellm"
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        done = subprocess.run(
            [
                command, "run", "--backend", backend, "--tokenizer", f"kind=hf_auto,model={tokenizer}",
                "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8", "--profile", f"kind={profile}",
                "--constraint", "kind=max_requests,count=6", "--output", f"kind=json,path={report}", "--disable-console",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-500:]
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0, totals
    assert totals["successful"] >= 6, totals


if __name__ == "__main__":
    check(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())["tokenizer"], sys.argv[3])
