"""Models that cannot be loaded, on a real Ray cluster: the others answer, and what is repaired answers, too."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.serving.cluster import Answer, Head, serve_config
from tests.serving.test_faults import SHORT, until
from tests.serving.test_rollout import asking

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MODEL = {"device": "cpu", "num_cpus": 0.25}


@pytest.fixture(scope="module")
def cluster(head: Head) -> Head:
    return head


def config(port: int, *models: dict[str, Any]) -> dict[str, Any]:
    args = {"models": [{**MODEL, **model} for model in models], "http": {"num_cpus": 0.25}}
    return serve_config(port, args)


def state_of(cluster: Head, model: str) -> dict[str, Any]:
    """What `/ready` says of ``model``; an ingress that does not know it yet says nothing."""
    state: dict[str, Any] = cluster.call("/ready").body["models"].get(model, {"state": "unknown"})
    return state


def is_running(cluster: Head) -> bool:
    """Whether Serve calls the application RUNNING, so that every replica of it runs."""
    with suppress(AssertionError):
        cluster.wait_until_running(0)
        return True
    return False


def ask(cluster: Head, model: str, **more: Any) -> Answer:
    return cluster.call(f"/{model}/chat", SHORT, **more)


def test_a_source_that_is_repaired_heals_by_itself(cluster: Head, checkpoint: Path, tmp_path: Path) -> None:
    """Two replicas, so that requests could reach one without its model while the other has it."""
    later = tmp_path / "later"
    cluster.deploy(
        config(
            cluster.port,
            {"name": "mine", "source": str(checkpoint)},
            {"name": "later", "source": str(later), "min_replicas": 2, "max_replicas": 2},
        )
    )
    with asking(cluster) as answers:
        cluster.wait_until_running()
        until(lambda: state_of(cluster, "later").get("tries", 0) >= 2, 60)
        state = state_of(cluster, "later")
        assert state["state"] == "failed"
        assert state["detail"].startswith(f"{later}: no such checkpoint directory. Tried ")
        assert f"the next try is in {state['next_try_s']} s." in state["detail"]
        refused = ask(cluster, "later")
        assert refused.status == 503
        assert refused.body["detail"].startswith(f"Model later could not be started. {later}: no such checkpoint")
        assert 1 <= int(refused.headers["Retry-After"]) <= 72
        assert cluster.call("/health").status == 200
        shutil.copytree(checkpoint, tmp_path / "copy")
        (tmp_path / "copy").rename(later)
        until(lambda: ask(cluster, "later").status == 200, 90)
        begun = time.monotonic()
        while not is_running(cluster):  # until the other replica has its model, too
            assert time.monotonic() - begun < 120
            assert ask(cluster, "later").status == 200
        assert state_of(cluster, "later")["state"] == "ready"
    assert {answer.status for answer in answers} == {200}
    assert len(answers) > 50
    assert ask(cluster, "later").body == ask(cluster, "mine").body


def test_a_bad_rollout_keeps_what_answers(cluster: Head, checkpoint: Path, tmp_path: Path) -> None:
    cluster.deploy(config(cluster.port, {"name": "mine", "source": str(checkpoint)}))
    cluster.wait_until_running()
    before = cluster.replica_of("mine").pid
    with asking(cluster) as answers:
        cluster.deploy(config(cluster.port, {"name": "mine", "source": str(tmp_path / "gone")}))
        until(lambda: "detail" in state_of(cluster, "mine"), 120)
        state = state_of(cluster, "mine")
        assert state["state"] == "ready"
        assert state["detail"] == (
            f"Its new version cannot be started, and the earlier one answers: {tmp_path}/gone: no such checkpoint directory"
        )
        assert cluster.replica_of("mine").pid == before
        shutil.copytree(checkpoint, tmp_path / "gone")
        again = {"name": "mine", "source": str(tmp_path / "gone")}
        cluster.deploy(config(cluster.port, {**again, "reload": "2026-11-30"}))
        cluster.wait_until_running()
        until(lambda: cluster.replica_of("mine").pid != before, 60)
    assert {answer.status for answer in answers} == {200}


def test_a_cause_that_stays_says_so_and_a_new_reload_tries_at_once(
    cluster: Head, checkpoint: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    models = [{"name": "mine", "source": str(checkpoint)}, {"name": "damaged", "source": str(damaged)}]
    cluster.deploy(config(cluster.port, *models))
    until(lambda: state_of(cluster, "damaged")["state"] == "failed", 60)
    cluster.wait_until_running()
    state = state_of(cluster, "damaged")
    assert state["detail"].startswith(f"{damaged}/config.json: cannot be read as JSON: ")
    assert "This does not pass by itself. Tried once; the next try is in " in state["detail"]
    assert 200 < state["next_try_s"] <= 360
    refused = ask(cluster, "damaged", prefer="wait=30")
    assert (refused.status, refused.headers["Retry-After"]) == (503, None)
    shutil.copy(checkpoint / "config.json", damaged / "config.json")
    before = cluster.replica_of("mine").pid
    with asking(cluster) as answers:
        cluster.deploy(config(cluster.port, models[0], {**models[1], "reload": 1}))
        until(lambda: ask(cluster, "damaged").status == 200, 90)
    assert {answer.status for answer in answers} == {200}
    assert cluster.replica_of("mine").pid == before


def test_a_model_that_loads_can_be_deleted_at_once(cluster: Head, checkpoint: Path, tmp_path: Path) -> None:
    """A replica that waits in its constructor does not keep Serve waiting."""
    models: list[dict[str, Any]] = [
        {"name": "mine", "source": str(checkpoint)},
        {"name": "waits", "source": str(tmp_path), "required": True},
    ]
    cluster.deploy(config(cluster.port, *models))
    until(lambda: state_of(cluster, "waits").get("tries", 0) >= 1, 60)
    cluster.deploy(config(cluster.port, models[0]))
    assert until(lambda: not cluster.processes("ray::ServeReplica:phi3:waits"), 60) < 20


def test_a_sleeping_model_tries_again_when_it_is_woken(cluster: Head, checkpoint: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    sleeping = {"name": "sleeping", "source": str(later), "min_replicas": 0, "scaling": {"sleep_after_s": 1}}
    cluster.deploy(config(cluster.port, {"name": "mine", "source": str(checkpoint)}, sleeping))
    until(lambda: state_of(cluster, "sleeping")["state"] == "scaled_to_zero", 60)
    assert ask(cluster, "sleeping").status == 503
    until(lambda: state_of(cluster, "sleeping")["state"] == "failed", 60)
    until(lambda: state_of(cluster, "sleeping")["state"] == "scaled_to_zero", 90)
    shutil.copytree(checkpoint, later)
    assert ask(cluster, "sleeping", prefer="wait=90", timeout=120).status == 200
