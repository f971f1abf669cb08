from typing import Any

import pytest

from phi3_serve.config.app import AppConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.serving.placement import NodeResources, Placement, place


def model(**fields: Any) -> ModelConfig:
    return AppConfig.model_validate({"models": [fields]}).models[0]


@pytest.mark.parametrize(
    ("fields", "has_gpu", "expected"),
    [
        ({"name": "phi-3-tiny"}, True, Placement("cpu", 1, 0, None)),
        ({"name": "phi-3-mini-4k-instruct"}, False, Placement("cuda", 2, 1, None)),
        ({"name": "phi-3-mini-4k-instruct", "device": "cpu"}, False, Placement("cpu", 1, 0, None)),
        ({"name": "mine", "source": "/x"}, False, Placement("cpu", 1, 0, None, lacks_gpu=True)),
        ({"name": "mine", "source": "/x", "device": "cpu"}, False, Placement("cpu", 1, 0, None)),
        ({"name": "mine", "source": "/x"}, True, Placement("cuda", 2, 1, None)),
        (
            {
                "name": "mine",
                "source": "/x",
                "device": "cuda",
                "num_gpus": 0.5,
                "num_cpus": 4,
                "accelerator_type": "L4",
            },
            False,
            Placement("cuda", 4, 0.5, "L4"),
        ),
    ],
)
def test_what_the_config_leaves_open(fields: dict[str, Any], has_gpu: bool, expected: Placement) -> None:
    assert place(model(**fields), cluster_has_gpu=has_gpu) == expected


def test_auto_is_a_gpu_where_one_can_come() -> None:
    local = model(name="mine", source="/x")
    assert place(local, cluster_has_gpu=False, elastic=True) == Placement("cuda", 2, 1, None)
    assert place(model(name="phi-3-tiny"), cluster_has_gpu=False, elastic=True).device == "cpu"
    assert place(model(name="mine", source="/x", device="cpu"), cluster_has_gpu=False, elastic=True).device == "cpu"


def test_the_cpu_that_nobody_has_chosen_is_named() -> None:
    fallback = place(model(name="mine", source="/x"), cluster_has_gpu=False)
    reason = "It runs on the CPU, because `device` is auto and the cluster had no GPU when the application was built."
    assert fallback.device_note([{"CPU": 8.0}]) == reason
    assert (
        fallback.device_note([{"CPU": 8.0}, {"GPU": 1.0}])
        == f"{reason} The cluster has a GPU now; `device: cuda` uses it."
    )
    chosen = place(model(name="mine", source="/x", device="cpu"), cluster_has_gpu=False)
    assert {chosen.device_note([{"GPU": 1.0}]), GPU_REPLICA.device_note([])} == {""}


GPU_REPLICA = Placement("cuda", 2, 1, None)
LABELLED = place(model(name="phi-3-tiny", label_selector={"phi3-serve/group": "cpu"}), cluster_has_gpu=True)


@pytest.mark.parametrize(
    ("placement", "nodes", "missing"),
    [
        (GPU_REPLICA, [{"CPU": 2.0, "GPU": 1.0}], None),
        (GPU_REPLICA, [{"CPU": 2.0}], "1 GPU on one node, and no node of the cluster has that"),
        (GPU_REPLICA, [], "2 CPU and 1 GPU on one node, and no node of the cluster has that"),
        (
            GPU_REPLICA,
            [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 4.0}],
            "2 CPU and 1 GPU together on one node, and no node of the cluster has them together",
        ),
        (
            Placement("cuda", 1, 1, "A100"),
            [{"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}],
            "an accelerator of type A100 on one node, and no node of the cluster has that",
        ),
        (LABELLED, [{"CPU": 1.0, "label:phi3-serve/group=cpu": 1.0}], None),
        (
            LABELLED,
            [{"CPU": 8.0, "label:phi3-serve/group=gpu": 1.0}],
            "the label phi3-serve/group=cpu on one node, and no node of the cluster has that",
        ),
    ],
)
def test_which_resource_is_missing(placement: Placement, nodes: list[dict[str, float]], missing: str | None) -> None:
    assert placement.missing_resource(nodes) == missing


CPU_REPLICA = Placement("cpu", 1, 0, None)


@pytest.mark.parametrize(
    ("placement", "nodes", "shortage"),
    [
        (CPU_REPLICA, [({"CPU": 2.0}, {})], "1 CPU (0 of 2 are free)"),
        (LABELLED, [({"CPU": 2.0, "label:phi3-serve/group=cpu": 1.0}, {})], "1 CPU (0 of 2 are free)"),
        (CPU_REPLICA, [({"CPU": 2.0}, {"CPU": 0.5})], "1 CPU (0.5 of 2 are free)"),
        (CPU_REPLICA, [({"CPU": 2.0}, {"CPU": 1.0})], None),
        (
            CPU_REPLICA,
            [({"CPU": 2.0}, {"CPU": 0.25}), ({"CPU": 4.0}, {"CPU": 0.5})],
            "1 CPU (at most 0.5 of 4 are free on one node)",
        ),
        (
            GPU_REPLICA,
            [({"CPU": 2.0}, {"CPU": 2.0}), ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0})],
            "2 CPU (1 of 8 are free) and 1 GPU (0 of 1 are free)",
        ),
        (
            GPU_REPLICA,
            [({"CPU": 4.0, "GPU": 1.0}, {"GPU": 1.0}), ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0})],
            "2 CPU and 1 GPU, free on the same node",
        ),
        (GPU_REPLICA, [({"CPU": 2.0}, {})], None),  # no node can ever have it: ``missing_resource`` says so
        (
            Placement("cuda", 1, 1, "L4"),
            [({"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}, {"CPU": 8.0})],
            "1 GPU (0 of 1 are free)",
        ),
    ],
)
def test_what_a_replica_waits_for(
    placement: Placement, nodes: list[tuple[dict[str, float], dict[str, float]]], shortage: str | None
) -> None:
    assert placement.shortage([NodeResources(total, free) for total, free in nodes]) == shortage
