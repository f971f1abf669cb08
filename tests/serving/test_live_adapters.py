"""Adapters that come, change and go while requests run, on a real Ray cluster. No replica restarts."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.api.kaito.test_chat import PROMPT
from tests.oracle.adapters import save_adapter
from tests.serving.cluster import Head, serve_config
from tests.serving.test_faults import until
from tests.support import ENDLESS

pytestmark = pytest.mark.cluster

SHORT = {"do_sample": False, "max_new_tokens": 16, **ENDLESS}
LONG = {**SHORT, "num_beams": 16, "max_new_tokens": 1500}  # many seconds


@pytest.fixture(scope="module")
def places(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    places = {name: save_adapter(directory / name, checkpoint, seed=n) for n, name in enumerate(("poet", "pirate"))}
    broken = directory / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    return {**places, "broken": broken}


def config(head: Head, checkpoint: Path, adapters: Mapping[str, Path], *live: Mapping[str, Any]) -> dict[str, Any]:
    model = {"name": "mine", "source": str(checkpoint), "device": "cpu", "num_cpus": 0.5}
    args = {"models": [{**model, "adapters": offered(adapters)}], "http": {"num_cpus": 0.25}}
    return serve_config(head.port, args, deployments=list(live))


def offered(adapters: Mapping[str, Path]) -> list[dict[str, str]]:
    return [{"name": name, "source": str(place)} for name, place in adapters.items()]


def live(adapters: Mapping[str, Path]) -> dict[str, Any]:
    return {"name": "mine", "user_config": {"adapters": offered(adapters)}}


def ask(head: Head, path: str, kwargs: Mapping[str, Any] = SHORT, **more: Any) -> str:
    answer = head.call(path, {"prompt": PROMPT, "generate_kwargs": kwargs, **more}, timeout=120)
    assert answer.status == 200, answer.body
    text: str = answer.body["Result"]
    return text


def listed(head: Head) -> list[str]:
    return [model["id"] for model in head.call("/v1/models").body["data"]]


def replicas(head: Head) -> set[int]:
    return {process.pid for process in head.processes("ray::ServeReplica:phi3:mine")}


def test_adapters_are_offered_changed_and_removed_while_requests_run(
    head: Head, checkpoint: Path, places: Mapping[str, Path]
) -> None:
    head.deploy(config(head, checkpoint, places))
    head.wait_until_running()
    pids = replicas(head)
    plain, poet, pirate = (ask(head, path) for path in ("/chat", "/mine:poet/chat", "/mine:pirate/chat"))
    assert len({plain, poet, pirate}) == 3
    assert ask(head, "/chat", adapters=[{"name": "poet"}]) == poet
    assert ask(head, "/chat", adapters=[{"name": "poet", "strength": 0}]) == plain
    until(lambda: listed(head) == ["mine", "mine:poet", "mine:pirate", "mine:broken"], 20)
    several_requests_of_one_call_are_answered(head, poet)
    the_broken_one_costs_only_its_requests(head, places, poet)
    a_request_in_flight_keeps_what_it_began_with(head, checkpoint, places, poet, pirate)
    what_is_removed_is_not_found(head, checkpoint, places, plain)
    a_change_of_args_reaches_the_replica(head, checkpoint, places, pirate)
    assert replicas(head) == pids


def several_requests_of_one_call_are_answered(head: Head, poet: str) -> None:
    """They have one id in Ray, by which the router of a model with adapters must not look for all of them."""
    fields = {"prompt": [PROMPT] * 4, "n": 2, "temperature": 0, "max_tokens": 16, "echo": True, **ENDLESS}
    answer = head.call("/v1/completions", {"model": "mine:poet", **fields}, timeout=60)
    assert answer.status == 200, answer.body
    assert [choice["text"] for choice in answer.body["choices"]] == [poet] * 8


def the_broken_one_costs_only_its_requests(head: Head, places: Mapping[str, Path], poet: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ask, head, "/mine:poet/chat")
        broken = head.call("/mine:broken/chat", {"prompt": PROMPT, "generate_kwargs": SHORT})
        assert good.result() == poet
    assert broken.status == 503
    assert broken.body["detail"].startswith(
        f"Adapter broken of mine cannot be loaded: {places['broken']}/adapter_config.json"
    )
    assert "\n" not in broken.body["detail"]


def a_request_in_flight_keeps_what_it_began_with(
    head: Head, checkpoint: Path, places: Mapping[str, Path], poet: str, pirate: str
) -> None:
    """`poet` becomes another adapter, by `user_config`."""
    expected = ask(head, "/mine:poet/chat", LONG)
    swapped = live({"poet": places["pirate"], "pirate": places["poet"]})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, head, "/mine:poet/chat", LONG)
        until(lambda: head.in_flight("mine") == 1, 20)
        head.deploy(config(head, checkpoint, places, swapped), wait=False)
        until(lambda: ask(head, "/mine:poet/chat") == pirate, 30)
        assert not running.done()
        assert ask(head, "/mine:pirate/chat") == poet
        assert running.result() == expected
    until(lambda: listed(head) == ["mine", "mine:poet", "mine:pirate"], 20)


def what_is_removed_is_not_found(head: Head, checkpoint: Path, places: Mapping[str, Path], plain: str) -> None:
    asked = {"prompt": PROMPT, "generate_kwargs": SHORT, "adapters": [{"name": "poet"}], "stream": True}
    head.deploy(config(head, checkpoint, places, live({"pirate": places["pirate"]})))
    until(lambda: head.call("/mine:poet/chat", asked | {"adapters": None, "stream": False}).status == 404, 30)
    refused = head.call("/chat", asked)
    assert (refused.status, refused.body["detail"]) == (
        404,
        "`adapters.0.name` names the adapter poet, which mine does not offer; offered are pirate.",
    )
    assert ask(head, "/chat") == plain
    until(lambda: listed(head) == ["mine", "mine:pirate"], 20)


def a_change_of_args_reaches_the_replica(head: Head, checkpoint: Path, places: Mapping[str, Path], pirate: str) -> None:
    """Without a `user_config` of the operator. A wrong one before it changes nothing."""
    wrong = {"name": "mine", "user_config": {"adapters": [{"name": "x y", "source": "a"}]}}
    head.deploy(config(head, checkpoint, {}, wrong))
    assert ask(head, "/mine:pirate/chat") == pirate
    head.deploy(config(head, checkpoint, {"other": places["pirate"]}))
    until(lambda: listed(head) == ["mine", "mine:other"], 40)
    assert ask(head, "/mine:other/chat") == pirate


def test_a_model_that_sleeps_knows_its_adapters(head: Head, checkpoint: Path, places: Mapping[str, Path]) -> None:
    """Also at once after a change of its `user_config` or its `args`, of which no replica was told."""
    asleep = config(head, checkpoint, {"poet": places["poet"]})
    asleep["applications"][0]["args"]["models"][0]["min_replicas"] = 0
    asked = {"prompt": PROMPT, "adapters": [{"name": "wrong"}]}
    refusal = "`adapters.0.name` names the adapter wrong, which mine does not offer; offered are "
    head.clear()  # else a replica of the test before would answer
    head.deploy(asleep, wait=False)
    until(lambda: head.call("/chat", asked).body["detail"] == refusal + "poet.", 40)
    assert not replicas(head)
    asleep["applications"][0]["deployments"] = [live({"pirate": places["pirate"]})]
    head.deploy(asleep, wait=False)
    assert head.call("/chat", asked).body["detail"] == refusal + "pirate."
    assert listed(head) == ["mine", "mine:pirate"]
    refused = head.call("/mine:poet/chat", {"prompt": PROMPT})
    assert refused.status == 404
    assert refused.body["detail"] == refusal.replace("adapters.0.name", "model").replace("wrong", "poet") + "pirate."
    assert not replicas(head)
    del asleep["applications"][0]["deployments"]
    asleep["applications"][0]["args"]["models"][0]["adapters"] = offered({"new": places["poet"]})
    head.deploy(asleep, wait=False)
    refused = head.call("/mine:new/chat", {"prompt": PROMPT})
    assert (refused.status, refused.headers["retry-after"]) == (503, "10"), refused.body
    assert head.call("/mine:new/chat", {"prompt": PROMPT, "generate_kwargs": SHORT}, prefer="wait=90").status == 200
