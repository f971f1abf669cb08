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
from phi3_serve.core import EngineInfo
from phi3_serve.serving.load_status import LoadStatus, read_engine_info, read_load_status
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
info = EngineInfo(
    device="GPU", compute_capability="7.5", dtype="float16", kernels="cuda", replaced_kernels={"attend": "x"}, cache_tokens=9
)
print(read_engine_info("org/m"))
status.publish_engine(info)
status.clear()
print(read_engine_info("org/m") == info, read_engine_info("other"))
from phi3_serve.serving import load_status
load_status._internal_kv_put("org/m", '{"of": "another version"}', namespace=load_status._ENGINES_NAMESPACE)
print(read_engine_info("org/m"))
print(read_load_status("org/m"))
"""


def test_the_status_is_there_while_the_replica_starts(head: Head) -> None:
    command = [sys.executable, "-c", STORY, f"127.0.0.1:{head.gcs}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    before, during, *engines, after = done.stdout.splitlines()
    assert engines == ["None", "True None", "None"]
    assert (before, after) == ("None", "None")
    assert during.startswith("org/m: loading weights: 40 % (40 B of 100 B, ")
    assert during.endswith(" s) None")
