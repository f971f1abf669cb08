"""The load status of starting replicas, in the store of a real Ray head."""

import subprocess
import sys

import pytest

from tests.serving.cluster import Head

pytestmark = pytest.mark.cluster

STORY = """
import sys
import ray
from phi3_serve.observability.progress import Progress, told_to
from phi3_serve.serving.load_status import LoadStatus, read_load_status
LoadStatus("before Ray").publish("nothing")
ray.init(address=sys.argv[1], log_to_driver=False)
print(read_load_status("org/m"))
status = LoadStatus("org/m")
with told_to(status.publish):
    progress = Progress("org/m: loading weights", 100)
    progress.advance(40)
    progress.finish()
progress.finish()
print(read_load_status("org/m"), read_load_status("other"))
status.clear()
print(read_load_status("org/m"))
"""


def test_the_status_is_there_while_the_replica_starts(head: Head) -> None:
    command = [sys.executable, "-c", STORY, f"127.0.0.1:{head.gcs}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    before, during, after = done.stdout.splitlines()
    assert (before, after) == ("None", "None")
    assert during.startswith("org/m: loading weights: 40 % (40 B of 100 B, ")
    assert during.endswith(" s) None")
