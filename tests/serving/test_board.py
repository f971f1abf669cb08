"""The notes of starting replicas, in the store of a real Ray head."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

STORY = """
import ray
from phi3_serve.observability.progress import Progress
from phi3_serve.serving import board
with board.telling("before Ray"):
    pass
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(board.told("org/m"))
try:
    with board.telling("org/m"):
        progress = Progress("org/m: loading weights", 100)
        progress.advance(40)
        progress.finish()
        print(board.told("org/m"), board.told("other"))
        raise ValueError
except ValueError:
    print(board.told("org/m"))
"""


def test_a_note_is_there_while_the_replica_starts() -> None:
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True, timeout=120, check=True)
    before, during, after = done.stdout.splitlines()
    assert (before, after) == ("None", "None")
    assert during.startswith("org/m: loading weights: 40 % (40 B of 100 B, ")
    assert during.endswith(" s) None")
