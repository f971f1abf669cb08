"""AIPerf: its profile of chat, completions, responses and Anthropic's messages, streamed, with texts that it makes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def check(url: str, tokenizer: str, model: str) -> None:
    """Run the command; its report counts what was answered."""
    for endpoint in ("chat", "completions", "responses", "messages"):
        with tempfile.TemporaryDirectory() as directory:
            _profile(url, tokenizer, model, endpoint, Path(directory))


def _profile(url: str, tokenizer: str, model: str, endpoint: str, directory: Path) -> None:
    command = Path(sys.executable).parent / "aiperf"
    done = subprocess.run(
        [
            command, "profile", "--model", model, "--url", url, "--endpoint-type", endpoint, "--streaming",
            "--tokenizer", tokenizer, "--request-count", "6", "--concurrency", "2", "--ui", "none",
            "--isl", "32", "--osl", "8", "--artifact-dir", str(directory),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-500:]
    (report,) = directory.rglob("profile_export_aiperf.json")
    found = json.loads(report.read_text())
    assert found["request_count"]["avg"] == 6, (endpoint, found)
    assert not found.get("error_summary"), (endpoint, found["error_summary"])


if __name__ == "__main__":
    check(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())["tokenizer"], sys.argv[3])
