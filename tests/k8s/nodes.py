"""``make nodes``: k8s/base on Ray nodes in network namespaces, from zero, with the loss of a node.

Each node has a network namespace of its own with an address, and its own /tmp/ray, /dev/shm and /weights, as a pod has. The
Serve config is that of k8s/base. Its models get ``device: cpu``, ``num_gpus: 1`` and ``num_cpus: 2``, which are the defaults of a
model on a GPU but for the device, because the GPUs are only counted. /weights has phi-3-tiny under the name of each variant. Nothing else differs. This program does what KubeRay and its autoscaler
do: it deploys the config through the dashboard, and starts a node for what Ray's autoscaler would read as demand.

It needs root, iproute2 and curl. The traffic stays between the namespaces, which it makes and deletes.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from phi3_serve.catalogue import EMBEDDED_TINY
from tests.image.dockerfile import stages_of
from tests.k8s.manifests import objects_of
from tests.k8s.rules import ROOT, configs

BRIDGE = "phi3-net"
HEAD, CPU, GPU, NEXT_GPU = "phi3-head", "phi3-cpu", "phi3-gpu", "phi3-gpu-2"
ADDRESS = {BRIDGE: "192.0.2.9", HEAD: "192.0.2.1", CPU: "192.0.2.2", GPU: "192.0.2.3", NEXT_GPU: "192.0.2.4"}
RAY_TOKEN, API_KEY = "t" * 43, "a key of the test"
MODEL = "phi-3-mini-4k-instruct"
STORE = 200_000_000  # bytes; every node of Ray has an object store
QUESTION = "<|user|> What is 2+2?<|end|><|assistant|>"
Found = TypeVar("Found")


@dataclass
class Reply:
    """What a client got."""

    status: int  # 0: the connection broke off
    body: Any
    retry_after: str = ""


@dataclass
class Nodes:
    """Namespaces and the Ray nodes in them."""

    directory: Path
    started: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str, words: str) -> None:
        """``ray start`` as the pod of a group does it."""
        own = self.directory / name
        for part in ("ray", "haproxy", "weights", "keys"):
            (own / part).mkdir(parents=True, exist_ok=True)
        for model in models_of_base():
            (own / "weights" / model).symlink_to(EMBEDDED_TINY)
        key = hashlib.sha256(API_KEY.encode()).hexdigest()
        (own / "keys" / "keys.yaml").write_text(yaml.safe_dump({"key_hashes": [key]}))
        mounts = [
            *(f"mount --bind {own / part} {path}" for part, path in MOUNTED.items()),
            "mount -t tmpfs -o size=2g tmpfs /dev/shm",
        ]
        ray = f"{sys.executable} -m ray.scripts.scripts start --node-ip-address {ADDRESS[name]} --block "
        ray += f"--object-store-memory {STORE} --disable-usage-stats {words}"
        script = " && ".join([*mounts, f"exec {ray}"])
        with (own / "log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                ["ip", "netns", "exec", name, "sh", "-c", script],
                stdout=log,
                stderr=log,
                env=environment(),
                cwd=ROOT,
                start_new_session=True,
            )

    def kill(self, name: str) -> int:
        """End everything in a namespace at once, as a power cut does; the number of processes."""
        listed = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=True
        ).stdout.split()
        for process in listed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        self.started.pop(name).wait(30)
        return len(listed)


MOUNTED = {"ray": "/tmp/ray", "haproxy": "/tmp/haproxy-serve", "weights": "/weights", "keys": "/etc/phi3-serve-keys"}


def environment() -> dict[str, str]:
    """That of a container: ENV of the image, and what KubeRay sets for ``authOptions``."""
    stages = stages_of(ROOT / "Dockerfile")
    image = dict(
        word.split("=", 1)
        for one in stages["base"].instructions
        if one.name == "ENV"
        for word in shlex.split(one.text)
        if word.startswith(("RAY_", "PYTHONUNBUFFERED"))
    )
    image["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(Path(sys.executable).parent / "phi3-serve-haproxy")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, **image, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": RAY_TOKEN, "PYTHONPATH": str(ROOT)}


def models_of_base() -> list[str]:
    """The names of the models of k8s/base that have weights."""
    (config,) = configs(objects_of("base"))
    models = yaml.safe_load(config[1])["applications"][0]["args"]["models"]
    return [model["name"] for model in models if "source" in model]


def config_for_counted_gpus() -> dict[str, Any]:
    """The Serve config of k8s/base for GPUs that are only counted."""
    (config,) = configs(objects_of("base"))
    content: dict[str, Any] = yaml.safe_load(config[1])
    for model in content["applications"][0]["args"]["models"]:
        if "source" in model:
            model |= {"device": "cpu", "num_gpus": 1, "num_cpus": 2}
    return content


@contextlib.contextmanager
def networks() -> Iterator[None]:
    """A bridge in a namespace of its own, and a namespace for each node that hangs at it."""
    made = [path for path in MOUNTED.values() if not Path(path).exists()]
    try:
        for path in made:
            Path(path).mkdir()
        for name in ADDRESS:
            subprocess.run(["ip", "netns", "add", name], check=True)
        inside(BRIDGE, "link add bridge type bridge", "link set bridge up", "link set lo up")
        inside(BRIDGE, f"addr add {ADDRESS[BRIDGE]}/24 dev bridge")
        for number, name in enumerate(name for name in ADDRESS if name != BRIDGE):
            inside(name, f"link add eth0 type veth peer name port{number} netns {BRIDGE}", "link set lo up")
            inside(name, f"addr add {ADDRESS[name]}/24 dev eth0", "link set eth0 up")
            inside(BRIDGE, f"link set port{number} master bridge", f"link set port{number} up")
        yield
    finally:
        for name in ADDRESS:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        for path in made:
            Path(path).rmdir()


def inside(name: str, *commands: str) -> None:
    """Carry out commands of ``ip`` in a namespace."""
    for words in commands:
        subprocess.run(["ip", "-n", name, *words.split()], check=True)


def ask(path: str, body: Any = None, *, prefer: str = "", seconds: float = 60) -> Reply:
    """A request from the namespace of the bridge to the node with the ingress."""
    headers = [f"Authorization: Bearer {API_KEY}", "Content-Type: application/json", f"Prefer: {prefer}"]
    words = [word for header in headers for word in ("--header", header)]
    words += [] if body is None else ["--data", json.dumps(body)]
    line = ["ip", "netns", "exec", BRIDGE, "curl", "-sS", "-D", "-", "--max-time", str(seconds), *words]
    done = subprocess.run([*line, f"http://{ADDRESS[CPU]}:8000{path}"], check=False, capture_output=True, text=True)
    if done.returncode:
        return Reply(0, done.stderr.strip())
    head, _, text = done.stdout.partition("\n\n")  # text mode reads \r\n as \n
    found = re.search(r"(?im)^retry-after: *(\S+)", head)
    status = int(head.split()[1])
    try:
        return Reply(status, json.loads(text), found[1] if found else "")
    except ValueError:
        return Reply(status, text, found[1] if found else "")


def chat(model: str, max_new_tokens: int = 8, **words: Any) -> Reply:
    """Ask a model KAITO's way."""
    given = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens, "do_sample": False}
    body = {"prompt": QUESTION, "generate_kwargs": given}
    return ask(f"/{model}/chat", body, **words)


def deploy(config: Any) -> bool:
    """As KubeRay does it: PUT to the dashboard of the head, with Ray's token; True.

    Raises:
        CalledProcessError: the dashboard does not listen yet, or refuses the config.
    """
    line = ["ip", "netns", "exec", BRIDGE, "curl", "-s", "-f", "-X", "PUT", "--max-time", "60", "--data", "@-"]
    line += ["--header", "Content-Type: application/json", "--header", f"Authorization: Bearer {RAY_TOKEN}"]
    url = f"http://{ADDRESS[HEAD]}:8265/api/serve/applications/"
    subprocess.run([*line, url], input=json.dumps(config), text=True, check=True)
    return True


def demand() -> list[str]:
    """What Ray's autoscaler would read: the resources and labels that no node has."""
    script = (
        "from ray._raylet import GcsClient; from ray.autoscaler.v2.sdk import get_cluster_resource_state as state\n"
        f"for found in state(GcsClient(address='{ADDRESS[HEAD]}:6379')).pending_resource_requests:\n"
        "    one = found.request\n"
        "    labels = [f'{c.label_key}={\",\".join(c.label_values)}' for s in one.label_selectors for c in s.label_constraints]\n"
        "    print(found.count, dict(one.resources_bundle), labels)"
    )
    line = ["ip", "netns", "exec", BRIDGE, sys.executable, "-c", script]
    done = subprocess.run(line, check=True, capture_output=True, text=True, env=environment(), cwd=ROOT)
    return done.stdout.splitlines()


def until(what: str, seconds: float, check: Callable[[], Found | None]) -> Found:
    """The first true result of ``check``."""
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        with contextlib.suppress(subprocess.CalledProcessError):
            if found := check():
                return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def answered(model: str) -> Callable[[], Reply | None]:
    """Whether ``model`` answers."""

    def check() -> Reply | None:
        reply = chat(model)
        return reply if reply.status == 200 else None

    return check


def states() -> dict[str, str]:
    """The state of each model in /ready."""
    reply = ask("/ready")
    if not isinstance(reply.body, dict):  # a proxy that does not know the routes yet answers in plain text
        return {}
    return {name: model["state"] for name, model in reply.body["models"].items()}


class Timed:
    """Prints what happened and how long it took."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """One line with the seconds since the line before."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)
        self.began = time.monotonic()


def from_zero_and_back(nodes: Nodes) -> None:
    """Deploy, wake a model, lose its node, and get it back."""
    timed = Timed()
    nodes.start(HEAD, "--head --num-cpus 0 --num-gpus 0 --dashboard-host 0.0.0.0")
    until("the head", 120, lambda: demand() == [] or None)
    nodes.start(CPU, f"--address {ADDRESS[HEAD]}:6379 --num-cpus 8 --num-gpus 0 --labels phi3-serve/group=cpu")
    timed.say("head and a node of the group cpu run")
    until("the dashboard", 120, lambda: deploy(config_for_counted_gpus()))
    until("phi-3-tiny", 240, answered("phi-3-tiny"))
    sleeping = until("states", 60, lambda: states() or None)
    assert {sleeping[name] for name in models_of_base()} == {"scaled_to_zero"}, sleeping
    timed.say(f"deployed: phi-3-tiny answers, {len(models_of_base())} models sleep, no GPU in the cluster")
    wake(nodes, GPU, timed)
    lose(nodes, timed)
    wake(nodes, NEXT_GPU, timed)


def wake(nodes: Nodes, gpu: str, timed: Timed) -> None:
    """A request asks for a node; the node comes; the model answers."""
    refused = until("a refusal", 120, lambda: reply if (reply := chat(MODEL)).status == 503 else None)
    assert refused.retry_after, refused
    print(f"          POST /{MODEL}/chat: {refused.status}, Retry-After: {refused.retry_after}, {refused.body}")
    wanted = until("demand", 60, lambda: [line for line in demand() if "GPU" in line] or None)
    assert any("phi3-serve/group=gpu-mini" in line for line in wanted), wanted
    timed.say(f"the autoscaler would read: {'; '.join(wanted)}")
    unplaceable = chat(MODEL)
    print(
        f"          POST /{MODEL}/chat: {unplaceable.status}, Retry-After: {unplaceable.retry_after}, {unplaceable.body}"
    )
    assert unplaceable.status == 503, unplaceable
    words = "--num-cpus 4 --num-gpus 1 --labels phi3-serve/group=gpu-mini"
    nodes.start(gpu, f"--address {ADDRESS[HEAD]}:6379 {words}")
    waited = chat(MODEL, prefer="wait=300", seconds=310)
    assert waited.status == 200, waited
    timed.say(f"a node with a GPU came, and a request with Prefer: wait=300 was answered: {waited.body}")


def lose(nodes: Nodes, timed: Timed) -> None:
    """A power cut of the node with the model, in the middle of a request."""
    replies: list[Reply] = []
    of_tiny: list[int] = []
    done = threading.Event()

    def ask_tiny() -> None:
        while not done.is_set():
            of_tiny.append(chat("phi-3-tiny").status)

    asking = threading.Thread(target=lambda: replies.append(chat(MODEL, 1500, seconds=120)))
    beside = threading.Thread(target=ask_tiny)
    asking.start()
    beside.start()
    time.sleep(0.5)
    count = nodes.kill(GPU)
    asking.join()
    timed.say(
        f"{count} processes of the node with {MODEL} died; its request got {replies[0].status}: {replies[0].body}"
    )
    until("the loss", 180, lambda: states().get(MODEL) not in ("ready", None) or None)
    done.set()
    beside.join()
    timed.say(
        f"/ready knows it: {states()[MODEL]}; phi-3-tiny answered {of_tiny.count(200)} of {len(of_tiny)} requests"
    )
    assert set(of_tiny) == {200}, of_tiny


def main() -> None:
    """Run it, and show the logs of all nodes if it fails."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--logs", type=Path, help="keep the files of the nodes in this directory")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="n", dir="/tmp", ignore_cleanup_errors=True) as scratch, networks():
        nodes = Nodes(given.logs or Path(scratch))
        try:
            from_zero_and_back(nodes)
        except BaseException:
            for name in nodes.started:
                print(f"--- {name}\n{(nodes.directory / name / 'log').read_text()[-3000:]}")
            raise
        finally:
            for name in list(nodes.started):
                nodes.kill(name)


if __name__ == "__main__":
    main()
