"""The end of all processes, here without Ray."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

FAMILY = """
import subprocess, sys, time
from rich.console import Console
from phi3_serve.launch.ending import Ending
Ending(Console()).take_signals(is_serving=False)
child = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
print(subprocess.Popen([sys.executable, "-c", child]).pid, flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_server_runs_ends_everything_without_a_word(number: signal.Signals) -> None:
    ours = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    pids = [int(ours.stdout.readline()) for _ in range(2)]
    ours.send_signal(number)
    rest, errors = ours.communicate(timeout=30)
    assert (ours.returncode, rest, errors) == (0, "", "")
    assert not any(map(runs, pids))


def test_a_failure_is_said_in_plain_words_with_the_path_of_the_log(tmp_path: Path) -> None:
    from phi3_serve.launch.run import _failure

    log = tmp_path / "server.log"
    log.write_text(
        "INFO all is well\nTraceback (most recent call last):\n  File x\nray.exceptions.RaySystemError: no GCS\nend\n"
    )
    said = "The server could not be started. ray.exceptions.RaySystemError: no GCS\n"
    assert _failure(None, log) == f"{said}The log has more: {tmp_path}"
    assert _failure(OSError("disk\nfull"), None) == "The server could not be started. OSError: disk full"
