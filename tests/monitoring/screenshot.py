"""The picture of Prometheus in docs/metrics.md: ``python -m tests.monitoring.screenshot``, three minutes.

It starts a server with phi-3-tiny and a directory of batches, and Debian's Prometheus, makes load for some minutes, checks that every
query of the dashboard has an answer but those for GPUs, and shows four of them in Prometheus' own page with Chromium.
"""

import json
import tempfile
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from phi3_serve.launch.proxy import free_port
from tests.serving.cluster import BIN, Cluster, running, serve_config
from tests.serving.test_monitoring import MODEL, NEEDS_OTHER_HARDWARE, QUERIES, ask, scraping, stream
from tests.web.browser import start_chromium

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "prometheus.png"
SHOWN = (  # the title of a panel, and a word of its query
    ("Time to first token", "0.99"),
    ("Tokens per second", "generation_tokens"),
    ("Requests in the engines", "running"),
    ("Use of the key-value cache", "usage"),
)
SECONDS = 100


def upload(server: Cluster, lines: str) -> str:
    """The id of a file of requests."""
    edge = "edge"
    parts = f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{edge}\r\n'
    parts += (
        'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n'
    )
    body = f"{parts}{lines}\r\n--{edge}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    with urllib.request.urlopen(
        urllib.request.Request(server.url + "/v1/files", body, headers), timeout=30
    ) as response:
        made: str = json.load(response)["id"]
        return made


def batch(server: Cluster, count: int) -> None:
    """Begin a batch of ``count`` requests."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 8}
    lines = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(count)
    ]
    made = {"input_file_id": upload(server, "\n".join(lines)), "endpoint": "/v1/chat/completions"}
    answer = server.call("/v1/batches", {**made, "completion_window": "24h"})
    assert answer.status == 200, answer.body


def load(server: Cluster, seconds: float) -> None:
    """Requests of several clients, more and fewer of them in turns, and a batch."""
    batch(server, 60)
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(6) as pool:
        while time.monotonic() < end:
            at_once = 6 if int(end - time.monotonic()) % 40 < 20 else 1
            futures = [pool.submit(stream if n % 2 else ask, server, n) for n in range(at_once)]
            for future in futures:
                future.result(60)


def main() -> None:
    """Start, load, check, show."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as scratch:
        directory, port = Path(scratch), free_port()
        args = {"models": [{"name": MODEL, "num_cpus": 1}], "batches": {"directory": str(directory / "batches")}}
        (directory / "config.yaml").write_text(yaml.safe_dump(serve_config(port, args)))
        command = [str(BIN / "phi3-serve"), "up", str(directory / "config.yaml")]
        with (
            running(command, directory / "log", port, RAY_metrics_report_interval_ms="1000") as server,
            scraping(server_ready(server), directory) as prometheus,
        ):
            load(server, SECONDS)
            silent = {(row, title) for row, title, expr in QUERIES if not prometheus.query(expr)}
            print(f"{len(QUERIES)} queries; without an answer: {sorted(silent)}")
            assert {row for row, _ in silent} <= NEEDS_OTHER_HARDWARE, silent
            picture(prometheus.url)


def server_ready(server: Cluster) -> Cluster:
    """``server`` when it answers."""
    server.wait_until_ready(240)
    return server


def picture(url: str) -> None:
    """Prometheus' page with the queries of ``SHOWN``."""
    shown = [next(expr for _, title, expr in QUERIES if title == name and word in expr) for name, word in SHOWN]
    words = {
        f"g{number}.{key}": value
        for number, expr in enumerate(shown)
        for key, value in (("expr", expr), ("tab", "0"), ("stacked", "0"), ("range_input", "2m"))
    }
    driver = start_chromium()
    try:
        driver.set_window_size(1280, 3050)
        driver.get(f"{url}/graph?{urllib.parse.urlencode(words)}")
        time.sleep(10)
        driver.save_screenshot(str(PICTURE))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
