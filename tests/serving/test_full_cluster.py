"""More models than cores: the ingress answers, and says what each model waits for. On a real Ray cluster."""

from collections import Counter
from pathlib import Path

import pytest

from tests.api.kaito.test_chat import GREEDY, PROMPT
from tests.serving.cluster import Answer, Head, serve_config
from tests.serving.test_faults import until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMES = ("a", "b", "c", "d")
WAITING = {"state": "loading", "detail": "Its replica waits for 2 CPU (0 of 4 are free)."}
ASKED = {"prompt": PROMPT, "generate_kwargs": GREEDY}


@pytest.fixture(scope="module")
def cluster(head: Head, checkpoint: Path) -> Head:
    """Each model takes two of the four cores."""
    models = [{"name": name, "source": str(checkpoint), "device": "cpu", "num_cpus": 2} for name in NAMES]
    head.deploy(serve_config(head.port, {"models": models}), wait=False)
    return head


def is_divided(answer: Answer) -> bool:
    """Whether two models are ready, and two wait."""
    models = list(answer.body["models"].values())
    return ([model["state"] for model in models].count("ready"), models.count(WAITING)) == (2, 2)


def test_the_ingress_says_what_each_model_waits_for(cluster: Head) -> None:
    until(lambda: is_divided(cluster.call("/ready", timeout=5)), 120)
    assert cluster.call("/health").body == {"status": "Healthy"}
    answers = {name: cluster.call(f"/{name}/chat", ASKED) for name in NAMES}
    assert Counter(answer.status for answer in answers.values()) == {200: 2, 503: 2}
    for name, answer in answers.items():
        if answer.status == 503:
            assert answer.body == {"detail": f"Model {name} is loading. {WAITING['detail']}"}
            assert answer.headers["Retry-After"] == "10"


def test_an_ingress_that_ends_finds_its_place_again(cluster: Head) -> None:
    """Its cores, if it had reserved some, would go to a model that waits."""
    until(lambda: is_divided(cluster.call("/ready", timeout=5)), 120)
    (ingress,) = cluster.processes("ray::ServeReplica:phi3:ingress")
    ingress.kill()
    ingress.wait(10)
    until(lambda: is_divided(cluster.call("/ready", timeout=5)), 60)
