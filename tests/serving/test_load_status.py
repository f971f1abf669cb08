"""The notes of starting replicas, in the store of a real Ray head."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

STORY = """
import ray
from phi3_serve.observability.progress import Progress, told_to
from phi3_serve.serving.load_status import Note, told
Note("before Ray").write("nothing")
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(told("org/m"))
note = Note("org/m")
with told_to(note.write):
    progress = Progress("org/m: loading weights", 100)
    progress.advance(40)
    progress.finish()
progress.finish()
print(told("org/m"), told("other"))
note.take_down()
print(told("org/m"))
"""


def test_a_note_is_there_while_the_replica_starts() -> None:
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True, timeout=120, check=True)
    before, during, after = done.stdout.splitlines()
    assert (before, after) == ("None", "None")
    assert during.startswith("org/m: loading weights: 40 % (40 B of 100 B, ")
    assert during.endswith(" s) None")
