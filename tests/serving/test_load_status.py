"""The load status of replicas without a model, in the store of a real Ray head."""

import subprocess
import sys

import pytest

from phi3_serve.serving.load_status import LoadStatus
from tests.serving.cluster import Head

pytestmark = pytest.mark.cluster

STORY = """
import sys
import ray
from phi3_serve.serving.load_status import LoadStatus, LoadStatusEntry, read_load_statuses
from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.serving import load_status, loaded_replica
from phi3_serve.serving.loaded_replica import LoadedReplica, announce, last_loaded

@ray.remote(num_cpus=0)
class Replica:
    def ping(self): pass

LoadStatusEntry(None).publish(LoadStatus(model="org/m", text="outside Serve"))
ray.init(address=sys.argv[1], log_to_driver=False)
print(read_load_statuses("phi3"))
replicas = [Replica.options(name=f"SERVE_REPLICA::phi3#org--m#{n}", namespace="serve").remote() for n in (0, 1, 3)]
ray.get([replica.ping.remote() for replica in replicas])
first, second, dead = [LoadStatusEntry(f"SERVE_REPLICA::phi3#org--m#{n}") for n in range(3)]
first.publish(LoadStatus(model="org/m", text="40 %"))
first.publish(LoadStatus(model="org/m", text="60 %"))
second.publish(LoadStatus(model="org/m", text="gone", num_tries=2, next_try_at=1e6, heals=False, is_running=True))
dead.publish(LoadStatus(model="org/m", text="of a replica that has died"))
load_status._internal_kv_put("SERVE_REPLICA::phi3#org--m#3", '{"of": "another version"}', namespace=load_status._NAMESPACE)
print(sorted(read_load_statuses("phi3")["org/m"], key=lambda status: status.text))
print(read_load_statuses("other"))
first.clear()
ray.kill(replicas[1])
while read_load_statuses("phi3"):
    pass
print(read_load_statuses("phi3"), last_loaded("phi3#org--m"))
engine = EngineInfo(
    device="GPU", compute_capability="7.5", dtype="float16", weight_dtype="float16", quantization="none", kv_cache_dtype="float16", kernels="cuda", replaced_kernels={"attend": "x"}, cache_tokens=9, cache_bytes=18, weight_bytes=27, weight_format="GGUF: Q8_0"
)
for name in ("first", "second"):
    announce(LoadedReplica(name=f"SERVE_REPLICA::phi3#org--m#{name}", version="v1", engine=engine))
print(last_loaded("phi3#org--m") == LoadedReplica(name="SERVE_REPLICA::phi3#org--m#second", version="v1", engine=engine), last_loaded("other#org--m"))
loaded_replica._internal_kv_put("phi3#org--m", '{"of": "another version"}', namespace=loaded_replica._NAMESPACE)
print(last_loaded("phi3#org--m"))
"""


def test_the_status_is_there_as_long_as_its_replica_has_no_model(head: Head) -> None:
    command = [sys.executable, "-c", STORY, f"127.0.0.1:{head.gcs}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    before, during, of_other, after, *loaded = done.stdout.splitlines()
    assert before == "{}"
    statuses = [
        LoadStatus(model="org/m", text="60 %"),
        LoadStatus(model="org/m", text="gone", num_tries=2, next_try_at=1e6, heals=False, is_running=True),
    ]
    assert during == repr(statuses)
    assert of_other == "{}"
    assert after == "{} None"
    assert loaded == ["True None", "None"]
