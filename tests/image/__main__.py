"""``make image``: build the images without Docker, run one in a network namespace, and ask it from another one.

It needs root, iproute2 and tini. The traffic stays between two namespaces that it makes and deletes.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.image.scratch import Builder, Image, start

SERVER, CLIENT = "phi3-image-server", "phi3-image-client"
ADDRESS = {SERVER: "192.0.2.1", CLIENT: "192.0.2.2"}  # for documentation (RFC 5737): no route leads there
START_S, END_S = 180, 60


def main(stage: str) -> None:
    """Build ``stage``, run its CMD as its USER, and ask the server."""
    with tempfile.TemporaryDirectory(prefix="image") as scratch, networks():
        image = Builder(Path(scratch)).build(stage)
        print(f"{stage}: built; {' '.join([*image.entrypoint, *image.command])} as {image.user}")
        server = start(image, [*image.entrypoint, *image.command], network=SERVER)
        try:
            engine = wait_until_ready(server)
            print(f"GET /ready from another host: phi-3-tiny on {engine['device']} with kernels {engine['kernels']}")
            assert engine["kernels"].startswith("cpu ("), engine
            body = {"prompt": "<|user|> What is 2+2?<|end|><|assistant|>", "return_full_text": False}
            answer = ask("/chat", {**body, "generate_kwargs": {"do_sample": False, "max_new_tokens": 16}})
            print(f"POST /chat: {answer}")
            assert answer["Result"]
            check_health(image)
            end(server)
        finally:
            if server.poll() is None:
                server.kill()
            output, _ = server.communicate(timeout=30)
            print(output[-1500:] if server.returncode else f"SIGTERM: ended with {server.returncode}")
        assert server.returncode == 0


@contextlib.contextmanager
def networks() -> Iterator[None]:
    """Two network namespaces with a wire between them."""
    try:
        for name in ADDRESS:
            subprocess.run(["ip", "netns", "add", name], check=True)
        wire = ["ip", "link", "add", "eth0", "netns", SERVER, "type", "veth", "peer", "name", "eth0", "netns", CLIENT]
        subprocess.run(wire, check=True)
        for name, address in ADDRESS.items():
            for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield
    finally:
        for name in ADDRESS:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def wait_until_ready(server: "subprocess.Popen[str]") -> dict[str, Any]:
    """The engine of phi-3-tiny, as /ready shows it."""
    end_at = time.monotonic() + START_S
    while time.monotonic() < end_at and server.poll() is None:
        with contextlib.suppress(subprocess.CalledProcessError, ValueError):
            model = ask("/ready")["models"]["phi-3-tiny"]
            if model["state"] == "ready":
                engine: dict[str, Any] = model["engine"]
                return engine
        time.sleep(1)
    raise AssertionError(f"the server was not ready after {START_S} s")


def ask(path: str, body: Any = None) -> Any:
    """The JSON answer of the server to a request from the other namespace."""
    data = [] if body is None else ["--header", "Content-Type: application/json", "--post-data", json.dumps(body)]
    line = ["ip", "netns", "exec", CLIENT, "wget", "-q", "-O", "-", "--tries=1", "--timeout=30", *data]
    done = subprocess.run([*line, f"http://{ADDRESS[SERVER]}:8000{path}"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def check_health(image: Image) -> None:
    """Run HEALTHCHECK beside the server."""
    probe = start(image, ["/bin/sh", "-c", image.health], network=SERVER)
    output, _ = probe.communicate(timeout=30)
    print(f"HEALTHCHECK: ended with {probe.returncode}")
    assert probe.returncode == 0, output


def end(server: "subprocess.Popen[str]") -> None:
    """SIGTERM to process 1 of the container, as ``docker stop`` sends it, and no process is left."""
    (first,) = psutil.Process(server.pid).children()
    assert first.name() == "tini", first
    started = first.children(recursive=True)
    assert "zombie" not in {process.status() for process in started}
    first.terminate()
    server.wait(END_S)
    assert not [process for process in started if process.is_running()]


if __name__ == "__main__":
    for name in sys.argv[1:] or ["cpu"]:
        main(name)
