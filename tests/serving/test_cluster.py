"""The application on a real local Ray cluster, called over HTTP as a client calls it."""

import contextlib
import http.client
import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import anthropic
import grpc
import ollama
import openai
import psutil
import pytest
import torch
import yaml
from openai import OpenAI

from phi3_serve.launch import proxy as proxies
from phi3_serve.launch.proxy import free_port
from phi3_serve.serving.backend import LOST_MESSAGE
from tests.api.kaito.test_chat import FULL, GREEDY, PROMPT
from tests.serving.cluster import BIN, ROOT, Cluster, running
from tests.support import ENDLESS
from tests.upgrades import UPGRADES, post_with_upgrade

pytestmark = pytest.mark.cluster

README = (ROOT / "README.md").read_text()
LONG = {"do_sample": True, "max_new_tokens": 1500, **ENDLESS}  # seconds of work


@pytest.fixture(scope="module")
def cluster(server: Cluster) -> Cluster:
    """Ready is the default model; the tests ask another one, too."""
    until_answered(server, "/mine/chat", {"prompt": "a", "generate_kwargs": {"max_new_tokens": 1}})
    return server


def test_rays_own_headers_lift_no_limit_of_ours(cluster: Cluster) -> None:
    headers = {
        "Content-Type": "application/json",
        "x-request-timeout-seconds": "-1",
        "x-request-disconnect-disabled": "?1",
        "serve_multiplexed_model_id": "x",
        "x-request-id": "mine-1",
    }
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    body = {"model": "mine", "prompt": "a", "generate_kwargs": {**LONG, "max_time": 0.2}}
    began = time.monotonic()
    connection.request("POST", "/chat", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert time.monotonic() - began < 5
    assert answer.headers.get_all("x-request-id") == ["mine-1"]
    connection.close()


def until_answered(cluster: Cluster, path: str, body: dict[str, Any], seconds: float = 90) -> Any:
    """Ask again while the answer is 503 with Retry-After, as that header says to."""
    end = time.monotonic() + seconds
    while (answer := cluster.call(path, body)).status == 503 and "Retry-After" in answer.headers:
        assert time.monotonic() < end, answer.body
        time.sleep(0.5)
    return answer


def test_the_terminal_says_in_a_few_lines_what_starts_and_how_to_call(cluster: Cluster) -> None:
    end = time.monotonic() + 20  # it asks every half second; the fixture may have been told before it
    while "  curl " not in (text := cluster.log.read_text()):
        assert time.monotonic() < end, text
        time.sleep(0.1)
    lines = text.splitlines()
    command = next(line for line in lines if line.startswith("  curl "))
    assert lines.index(command) < 14, text  # behind it are the lines of later events
    assert lines[0] == "Starting phi-3-tiny, mine. On request: org/lazy, broken, phi-3-mini-4k-instruct."
    assert lines[1].startswith("Log: ")
    assert (Path(lines[1].removeprefix("Log: ")) / "server.log").stat().st_size > 0
    assert list(Path(lines[1].removeprefix("Log: ")).glob("ray-logs/serve/replica_*"))
    assert "Ready. Ctrl-C stops the server." in lines
    assert f"  Page      {cluster.url}/ui" in lines
    assert f"  Terminal  phi3-serve chat --url {cluster.url}" in lines
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert "Result" in json.loads(done.stdout)


def test_kaitos_basic_example_is_answered(cluster: Cluster) -> None:
    answer = cluster.call("/chat", {"prompt": PROMPT})
    assert answer.status == 200
    assert answer.body["Result"].startswith(PROMPT)


def test_kaitos_full_example_is_answered(cluster: Cluster) -> None:
    answer = cluster.call("/chat", FULL)
    assert (answer.status, set(answer.body)) == (200, {"Result"})


def test_a_local_checkpoint_under_any_name_answers_as_transformers_does(cluster: Cluster, oracle: Any) -> None:
    expected = oracle(PROMPT, **GREEDY)[0]["generated_text"]
    for path, model in (("/chat", "mine"), ("/mine/chat", None)):
        answer = cluster.call(path, {"prompt": PROMPT, "model": model, "generate_kwargs": GREEDY})
        assert answer.body == {"Result": expected}


def open_stream(cluster: Cluster, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    connection.request("POST", "/mine/chat", json.dumps(body), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def test_a_stream_comes_while_it_is_made(cluster: Cluster) -> None:
    body = {"prompt": PROMPT, "stream": True, "return_full_text": False, "generate_kwargs": {**LONG, "seed": 1}}
    connection, response = open_stream(cluster, body)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    began, arrivals, events = time.monotonic(), [], []
    for line in response:
        if line.startswith(b"data: {"):
            arrivals.append(time.monotonic() - began)
            events.append(json.loads(line[6:]))
    connection.close()
    assert arrivals[0] < arrivals[-1] / 4
    assert len(events) > 10
    assert "".join(event["Delta"] for event in events[:-1]) == events[-1]["Result"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_model(cluster: Cluster, stream: bool) -> None:
    goes_away_and_frees_the_model(cluster, stream)


def goes_away_and_frees_the_model(cluster: Cluster, stream: bool, model: str = "mine") -> None:
    long_body = {"prompt": PROMPT, "stream": stream, "generate_kwargs": LONG}
    began = time.monotonic()
    cluster.call(f"/{model}/chat", {**long_body, "stream": False})
    whole = time.monotonic() - began
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    connection.request("POST", f"/{model}/chat", json.dumps(long_body), {"Content-Type": "application/json"})
    time.sleep(0.2)
    assert connection.sock is not None
    connection.sock.close()
    began = time.monotonic()
    while cluster.in_flight(model):
        assert time.monotonic() - began < max(1.0, whole / 2)
        time.sleep(0.02)
    assert cluster.call(f"/{model}/chat", {"prompt": PROMPT, "generate_kwargs": {"max_new_tokens": 1}}).status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_after_two_packets_frees_the_model(cluster: Cluster, stream: bool) -> None:
    """OpenAI's SDK sends the headers and the body in separate packets."""
    goes_away_after_two_packets(cluster, stream, "mine")


def goes_away_after_two_packets(cluster: Cluster, stream: bool, model: str, num_clients: int = 4) -> None:
    """Two clients fill the 128 rows of a step, and those behind them wait in the queue."""
    wide = {"do_sample": True, "max_new_tokens": 1500, "num_return_sequences": 64, **ENDLESS}
    body = json.dumps({"prompt": PROMPT, "stream": stream, "generate_kwargs": wide}).encode()
    head = f"POST /{model}/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connections = []
    for _ in range(num_clients):
        connection = socket.create_connection(("127.0.0.1", cluster.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head.encode())
        time.sleep(0.05)
        connection.sendall(body)
        connections.append(connection)
    end = time.monotonic() + 20
    while cluster.in_flight(model) < num_clients:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    for connection in connections:
        connection.close()
    began = time.monotonic()
    while cluster.in_flight(model):
        assert time.monotonic() - began < 2
        time.sleep(0.02)


def test_ray_is_reached_from_this_machine_only(cluster: Cluster) -> None:
    """One port of each replica has an address that Ray fixes. It refuses a call without the token."""
    listeners: dict[Any, str] = {}
    for process in [psutil.Process(cluster.process.pid), *psutil.Process(cluster.process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            name = " ".join(process.cmdline())
            found = [s.laddr for s in process.net_connections("tcp") if s.status == psutil.CONN_LISTEN]
            listeners |= dict.fromkeys(found, name)
    assert len(listeners) > 10
    reached = {a.port: name for a, name in listeners.items() if a.ip not in ("127.0.0.1", "::ffff:127.0.0.1")}
    assert reached
    assert all("ray::ServeReplica:phi3:" in name for name in reached.values()), reached
    for port in reached:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_too_many_requests_get_429_and_the_others_an_answer(cluster: Cluster) -> None:
    """Two requests of 64 sequences fill the 128 rows of a step, two more may wait."""
    wide = {**LONG, "max_new_tokens": 200, "num_return_sequences": 64}
    assert cluster.in_flight("mine") == 0
    time.sleep(0.5)  # what was aborted last leaves its step
    asked = []
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            asked.append(pool.submit(cluster.call, "/mine/chat", {"prompt": PROMPT, "generate_kwargs": wide}))
            time.sleep(0.05)
    answers = [future.result() for future in asked]
    refused = [answer for answer in answers if answer.status == 429]
    assert sorted(answer.status for answer in answers) == [200] * 4 + [429] * 4
    for answer in refused:
        assert answer.body == {"detail": "2 requests are waiting already; limits.max_waiting_requests is 2."}
        assert answer.headers["Retry-After"] == "5"


def test_a_model_that_no_node_can_hold_is_refused_at_once_and_says_why(cluster: Cluster) -> None:
    began = time.monotonic()
    answer = cluster.call("/phi3-mini-4k/chat", {"prompt": PROMPT})
    assert time.monotonic() - began < 2
    assert answer.status == 503
    assert "Retry-After" not in answer.headers
    assert answer.body == {
        "detail": "Model phi-3-mini-4k-instruct cannot run on this cluster. A replica needs 1 GPU on one node, "
        "and no node of the cluster has that."
    }


def test_a_sleeping_model_is_woken_by_a_request_and_not_by_readiness(cluster: Cluster) -> None:
    for _ in range(3):
        assert cluster.call("/ready").body["models"]["org/lazy"]["state"] == "scaled_to_zero"
    body = {"prompt": PROMPT, "generate_kwargs": GREEDY}
    first = cluster.call("/org/lazy/chat", body)
    assert (first.status, first.headers["Retry-After"]) == (503, "10")
    assert first.body == {"detail": "Model org/lazy was scaled to zero and is starting now. Try again in a while."}
    with ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(cluster.call, "/org/lazy/chat", body, timeout=120, prefer="respond-async, wait=90")
            for _ in range(8)
        ]
        refused = [answer.result() for answer in itertools.islice(as_completed(waiting), 6)]
        assert cluster.call("/ready").body["models"]["org/lazy"]["state"] != "ready"
        assert cluster.call("/chat", body).status == 200  # those who wait take no place of others
    assert {(answer.status, answer.headers["Retry-After"], answer.body["detail"]) for answer in refused} == {
        (429, "10", "2 requests are waiting for model org/lazy to start; limits.max_waiting_requests is 2.")
    }
    answered = [answer.result() for answer in waiting if answer.result() not in refused]
    expected = cluster.call("/mine/chat", body).body
    assert [(answer.status, answer.body) for answer in answered] == [(200, expected)] * 2
    assert cluster.call("/ready").body["models"]["org/lazy"]["state"] == "ready"


def test_ready_shows_what_each_model_runs_on(cluster: Cluster) -> None:
    models = cluster.call("/ready").body["models"]
    engine = models["phi-3-tiny"]["engine"]
    assert (engine["compute_capability"], engine["dtype"]) == (None, "float32")
    assert engine["kernels"].startswith("cpu (")
    assert engine["replaced_kernels"] == {}
    assert engine["cache_tokens"] > 0
    assert "engine" not in models["broken"]


def until_shown(cluster: Cluster, text: str) -> None:
    """Wait until the terminal of `up` shows ``text``; a server that is ready is asked every five seconds."""
    end = time.monotonic() + 20
    while text not in cluster.log.read_text():
        assert time.monotonic() < end, cluster.log.read_text()
        time.sleep(0.2)


def test_a_missing_checkpoint_is_one_clear_line_a_try(cluster: Cluster) -> None:
    assert cluster.call("/broken/chat", {"prompt": PROMPT}).status == 503
    end = time.monotonic() + 90
    while (state := cluster.call("/ready").body["models"]["broken"]).get("tries", 0) < 2:
        assert time.monotonic() < end, state
        time.sleep(0.5)
    assert state["state"] == "failed"
    answer = cluster.call("/broken/chat", {"prompt": PROMPT})
    log = "".join(path.read_text() for path in cluster.temporary.glob("**/serve/replica_phi3_broken_*.log"))
    reason = re.search(r"\S+/gone: no such checkpoint directory", log)
    assert reason is not None
    assert answer.status == 503
    assert answer.body["detail"].startswith(f"Model broken could not be started. {reason.group()}. Tried ")
    assert int(answer.headers["Retry-After"]) <= 72
    tries = [line for line in log.splitlines() if "broken cannot be loaded: " in line]
    assert 2 <= len(tries) <= 5
    assert "CheckpointIncomplete" not in log  # no traceback
    until_shown(cluster, f"Model broken cannot be loaded: {reason.group()}. Tried ")
    assert cluster.call("/chat", {"prompt": PROMPT}).status == 200


def test_failures_keep_their_status_and_text_through_ray(cluster: Cluster) -> None:
    too_long = cluster.call("/chat", {"prompt": "a b c d e f", "generate_kwargs": {"max_length": 3}})
    assert too_long.status == 400
    assert too_long.body["detail"].startswith("Input length of input_ids is 6, but `max_length` is set to 3.")
    unknown = cluster.call("/chat", {"prompt": "a", "model": "phi-3-tony"})
    assert (unknown.status, unknown.body) == (
        404,
        {"detail": "Model phi-3-tony is not served here; did you mean phi-3-tiny?"},
    )
    wrong = cluster.call("/chat", {"prompt": 3})
    assert (wrong.status, wrong.body["detail"][0]["loc"]) == (422, ["body", "prompt"])
    streamed = cluster.call("/chat", {"prompt": "a", "stream": True, "generate_kwargs": {"eos_token_id": 9999}})
    assert (streamed.status, streamed.body["detail"]) == (
        400,
        "`eos_token_id` holds token id 9999; this model's ids go from 0 to 1791.",
    )


def replica_of(cluster: Cluster, model: str) -> psutil.Process:
    name = f"ray::ServeReplica:phi3:{model}"
    found = [p for p in psutil.Process(cluster.process.pid).children(recursive=True) if name in " ".join(p.cmdline())]
    assert len(found) == 1, found
    return found[0]


def test_a_plain_request_ends_with_its_replica_and_the_next_is_answered(cluster: Cluster) -> None:
    """What runs may be the cause, so it is not sent to the next replica."""
    body = {"prompt": PROMPT, "generate_kwargs": {**LONG, "seed": 5}}
    expected = cluster.call("/mine/chat", body).body
    killed = replica_of(cluster, "mine")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(cluster.call, "/mine/chat", body)
        time.sleep(0.3)
        killed.kill()
        lost = answer.result(90)
    assert (lost.status, lost.body) == (500, {"detail": LOST_MESSAGE})
    assert (lost.headers["x-should-retry"], lost.headers["Retry-After"]) == ("false", None)
    assert until_answered(cluster, "/mine/chat", body).body == expected
    assert replica_of(cluster, "mine").pid != killed.pid


def test_a_single_replica_that_is_replaced_counts_as_loading(cluster: Cluster) -> None:
    replica_of(cluster, "phi-3-tiny").kill()
    states: set[str] = set()
    end = time.monotonic() + 90
    while "loading" not in states or cluster.call("/ready").status != 200:
        assert time.monotonic() < end, states
        assert cluster.call("/health").status == 200
        states.add(cluster.call("/ready").body["models"]["phi-3-tiny"]["state"])
        time.sleep(0.1)
    assert states <= {"ready", "loading"}


def test_a_stream_whose_replica_dies_ends_in_an_error(cluster: Cluster) -> None:
    body = {"prompt": PROMPT, "stream": True, "generate_kwargs": LONG}
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    connection.request("POST", "/mine/chat", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    replica_of(cluster, "mine").kill()
    rest = response.read().decode()
    assert "event: error" in rest
    assert LOST_MESSAGE in rest
    assert "[DONE]" not in rest
    answer = until_answered(cluster, "/mine/chat", {"prompt": PROMPT, "generate_kwargs": {"max_new_tokens": 1}})
    assert answer.status == 200


def test_hardware_and_health(cluster: Cluster) -> None:
    assert cluster.call("/").body == {"message": "Server is running"}
    assert cluster.call("/health").body == {"status": "Healthy"}
    assert cluster.call("/metrics").body["cpu_info"]["total_cores"] == psutil.cpu_count()


def test_the_ingress_process_holds_no_torch(cluster: Cluster) -> None:
    processes = psutil.Process(cluster.process.pid).children(recursive=True)
    by_name = {p.name(): p for p in processes} | {(p.cmdline() or [""])[0]: p for p in processes}
    ingress = next(p for name, p in by_name.items() if "phi3:ingress" in name)
    tiny = next(p for name, p in by_name.items() if "phi3:phi-3-tiny" in name)
    assert any("libtorch" in m.path for m in tiny.memory_maps())
    assert not any("libtorch" in m.path for m in ingress.memory_maps())


def test_a_burst_on_both_models_is_answered(cluster: Cluster) -> None:
    """Every answer is its own: a seed gives the same text alone and beside others."""
    bodies = [{"prompt": PROMPT, "generate_kwargs": {"seed": i % 3, "max_new_tokens": 20}} for i in range(6)]
    alone = [cluster.call("/mine/chat", body).body for body in bodies[:3]]
    lock = threading.Semaphore(3)  # what may run and wait at once

    def ask(body: dict[str, Any]) -> Any:
        with lock:
            return cluster.call("/mine/chat", body).body

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, bodies)) == alone + alone


README_COMMANDS = re.findall(
    r"^curl.*?(?=^curl|^#|^```)", "".join(re.findall(r"```bash\n.*?```", README, re.S)), re.S | re.M
)


@pytest.mark.parametrize("command", README_COMMANDS, ids=range(len(README_COMMANDS)))
def test_the_commands_of_the_readme_are_answered(cluster: Cluster, command: str) -> None:
    here = command.replace("http://127.0.0.1:8000", cluster.url).replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "stream" in command:
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert {"Result", "choices"} & set(json.loads(done.stdout))


def test_the_sdk_gets_what_kaitos_examples_get(cluster: Cluster) -> None:
    """The same greedy text from the same model by every road: raw prompt, conversation, SDK, streamed or not.

    The answer to a raw prompt goes on with its text, so it has a space before its first word.
    """
    with OpenAI(base_url=f"{cluster.url}/v1", api_key="none") as sdk:
        for question in (PROMPT, FULL["prompt"]):
            kwargs = {"do_sample": False, "max_new_tokens": 300}
            body = {"prompt": question, "return_full_text": False, "generate_kwargs": kwargs}
            continued = cluster.call("/chat", body).body["Result"]
            assert continued.startswith(" ")
            expected = continued[1:]
            text = question.removeprefix("<|user|> ").removesuffix("<|end|><|assistant|>")
            asked: dict[str, Any] = {"model": "phi-3-tiny", "messages": [{"role": "user", "content": text}]}
            assert cluster.call("/chat", {"messages": asked["messages"], "generate_kwargs": kwargs}).body == {
                "Result": expected
            }
            plain = sdk.chat.completions.create(**asked, temperature=0)
            assert plain.choices[0].message.content == expected
            assert plain.choices[0].finish_reason == "stop"
            stream = list(sdk.chat.completions.create(**asked, temperature=0, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
            assert stream[-1].choices[0].finish_reason == "stop"
            raw = sdk.completions.create(model="phi-3-tiny", prompt=question, temperature=0, max_tokens=300)
            assert raw.choices[0].text == continued


def test_openai_errors_through_ray(cluster: Cluster) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    with OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as sdk:
        assert {m.id for m in sdk.models.list()} >= {"phi-3-tiny", "mine", "phi-3-mini-4k-instruct"}
        with pytest.raises(openai.InternalServerError, match="needs 1 GPU"):
            sdk.chat.completions.create(model="phi-3-mini-4k-instruct", messages=messages)
        with pytest.raises(openai.BadRequestError, match="ids go from 0 to 1791"):
            sdk.chat.completions.create(model="phi-3-tiny", messages=messages, logit_bias={"5000": 1}, stream=True)


def test_every_api_gives_the_same_answer_through_ray(cluster: Cluster) -> None:
    question: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": "phi-3-tiny", "messages": question, "generate_kwargs": {"do_sample": False, "max_new_tokens": 64}}
    expected = cluster.call("/chat", body).body["Result"]
    greedy: dict[str, Any] = {"model": "phi-3-tiny", "temperature": 0}
    tokens = cluster.call("/tokenize", {"model": "phi-3-tiny", "messages": question}).body["tokens"]
    with anthropic.Anthropic(base_url=cluster.url, api_key="none", max_retries=0) as sdk:
        asked: dict[str, Any] = {"model": "phi-3-tiny", "max_tokens": 64, "extra_body": {"temperature": 0}}
        with sdk.messages.stream(**asked, messages=question) as stream:
            assert stream.get_final_text() == expected
        message = sdk.messages.create(**asked, messages=question)
        assert message.usage.input_tokens == len(tokens)
        assert sdk.messages.count_tokens(model="phi-3-tiny", messages=question).input_tokens == len(tokens)
        with pytest.raises(anthropic.APIStatusError, match="needs 1 GPU"):
            sdk.messages.create(model="phi-3-mini-4k-instruct", messages=question, max_tokens=5)
    with OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as openai_sdk:
        assert openai_sdk.responses.create(**greedy, input=question, max_output_tokens=64).output_text == expected
    with ollama.Client(host=cluster.url) as client:
        parts = client.chat(
            model="phi-3-tiny:latest",
            messages=question,
            options={"temperature": 0, "num_predict": 64, "repeat_penalty": 1},
            stream=True,
        )
        assert "".join(part.message.content or "" for part in parts) == expected
        assert {"phi-3-tiny:latest", "mine:latest"} <= {model.model for model in client.list().models}
        assert "phi-3-mini-4k-instruct:latest" not in {model.name for model in client.ps().models}
        with pytest.raises(ollama.ResponseError, match="ids go from 0 to 1791"):
            client.chat(model="phi-3-tiny", messages=question, options={"suppress_tokens": [5000]})
    text = cluster.call("/detokenize", {"model": "phi-3-tiny", "tokens": tokens}).body["content"]
    assert "What is the capital of France?" in text
    assert cluster.call("/detokenize", {"model": "phi-3-tiny", "tokens": [5000]}).status == 400


def test_the_readme_has_an_example_of_each_kind() -> None:
    assert len(README_COMMANDS) == 5
    assert sum("stream" in command for command in README_COMMANDS) == 1


@pytest.mark.ends_server
def test_ctrl_c_leaves_no_process(cluster: Cluster) -> None:
    until_shown(cluster, "  curl ")
    shown = cluster.log.read_text()
    began = time.monotonic()
    cluster.stop(signal.SIGINT)
    assert time.monotonic() - began < 5
    assert len(cluster.children) > 5
    assert cluster.left_over() == []
    assert cluster.process.returncode == 0
    assert cluster.log.read_text() == shown  # no error line


@pytest.mark.slow
def test_serve_run_and_serve_build_need_only_ray(tmp_path: Path) -> None:
    """The shipped config with the plain Ray command, then what `serve build` makes of the bound app."""
    port = free_port()
    config = tmp_path / "config.yaml"
    config.write_text((ROOT / "serve_config.yaml").read_text().replace("port: 8000", f"port: {port}"))
    with running([str(BIN / "serve"), "run", str(config)], tmp_path / "log", port) as cluster:
        cluster.wait_until_ready()
        assert cluster.call("/chat", {"prompt": PROMPT}).status == 200
        states = {name: model["state"] for name, model in cluster.call("/ready").body["models"].items()}
        assert states.pop("phi-3-tiny") == "ready"
        assert set(states.values()) <= {"unplaceable", "scaled_to_zero"}
        for stream in (False, True):  # here behind the proxy in Python
            goes_away_and_frees_the_model(cluster, stream, "phi-3-tiny")
        cluster.stop(signal.SIGTERM)
        assert cluster.left_over() == []
    built = tmp_path / "built.yaml"
    command = [str(BIN / "serve"), "build", "phi3_serve.serving.app:app", "-o", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    (application,) = yaml.safe_load(built.read_text())["applications"]
    deployments = {d["name"]: d for d in application["deployments"]}
    assert set(deployments) == {"ingress", *states, "phi-3-tiny"}
    assert deployments["phi-3-medium-4k-instruct"]["ray_actor_options"]["num_gpus"] == 1
    assert deployments["phi-3-medium-4k-instruct"]["autoscaling_config"]["min_replicas"] == 0
    assert deployments["phi-3-tiny"]["ray_actor_options"].get("num_gpus", 0) == 0


@pytest.mark.slow
def test_serve_deploy_on_a_running_cluster(tmp_path: Path) -> None:
    """`ray start --head` with one GPU in name, then `serve deploy` of the shipped config from another process."""
    port, dashboard = free_port(), free_port()
    config = tmp_path / "config.yaml"
    config.write_text((ROOT / "serve_config.yaml").read_text().replace("port: 8000", f"port: {port}"))
    head = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=4", "--num-gpus=1"),
    ]
    deploy = [str(BIN / "serve"), "deploy", str(config), "-a", f"http://127.0.0.1:{dashboard}"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    env = {**token, **proxies.environment("python", port=port, request_timeout_s=600)}
    with running(head, tmp_path / "log", port, **env) as cluster:
        for _ in range(30):
            time.sleep(1)
            env = {**os.environ, **token}
            done = subprocess.run(deploy, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        cluster.wait_until_ready()
        assert cluster.call("/chat", FULL).status == 200
        for protocol in UPGRADES:
            for is_chunked in (False, True):
                assert b"Result" in post_with_upgrade(("127.0.0.1", port), protocol, is_chunked)
        for stream in (False, True):
            goes_away_after_two_packets(cluster, stream, "phi-3-tiny")
        states = {name: model["state"] for name, model in cluster.call("/ready").body["models"].items()}
        assert states.pop("phi-3-tiny") == "ready"
        assert set(states.values()) == {"scaled_to_zero"}  # with a GPU, each of them could run
        if not torch.cuda.is_available():
            answer = until_answered(cluster, "/phi-3-mini-4k-instruct/chat", {"prompt": PROMPT})
            assert answer.status == 503
            assert answer.body["detail"].startswith(
                "Model phi-3-mini-4k-instruct could not be started. "
                "phi-3-mini-4k-instruct: device is cuda, but torch sees no GPU on this node. This does not pass by itself."
            )
        cluster.stop(signal.SIGTERM)
        assert cluster.left_over() == []
