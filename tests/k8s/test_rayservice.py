"""k8s/rayservice.yaml: valid against the copy of KubeRay's CRD, read strictly, and in step with serve_config.yaml."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray._private import ray_constants

from phi3_serve import __version__
from phi3_serve.catalogue import VARIANTS
from phi3_serve.config import AppConfig
from phi3_serve.launch import proxy as proxies
from phi3_serve.launch.config_file import IMPORT_PATH, parse
from tests.k8s.crd import COPY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest() -> Any:
    return yaml.safe_load((ROOT / "k8s" / "rayservice.yaml").read_text())


def groups(manifest: Any) -> dict[str, Any]:
    cluster = manifest["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}


def containers(manifest: Any) -> dict[str, Any]:
    return {name: group["template"]["spec"]["containers"][0] for name, group in groups(manifest).items()}


def strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as JSON schema in which unknown keys fail."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("default", "format")
    }
    if "properties" in kept:
        kept["properties"] = {name: strict(value) for name, value in kept["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    for key in ("items", "additionalProperties", "anyOf", "oneOf", "allOf"):
        if key in kept:
            kept[key] = strict(kept[key])
    return kept


@pytest.fixture(scope="module")
def schema() -> Any:
    found = strict(yaml.load(COPY.read_text(), yaml.CSafeLoader))
    found["properties"]["metadata"] = {"type": "object"}
    return found


def test_it_is_valid_against_the_crd(manifest: Any, schema: Any) -> None:
    assert [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(manifest)] == []


@pytest.mark.parametrize(
    "path",
    [
        "spec.serveConfig",
        "spec.rayClusterConfig.rayVersions",
        "spec.rayClusterConfig.headGroupSpec.template.spec.container",
        "spec.rayClusterConfig.workerGroupSpecs.0.minReplica",
    ],
)
def test_a_misspelt_key_fails(manifest: Any, schema: Any, path: str) -> None:
    broken = yaml.safe_load(yaml.safe_dump(manifest))
    *parents, key = path.split(".")
    place = broken
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[key] = "x"
    messages = [e.message for e in Draft202012Validator(schema).iter_errors(broken)]
    assert messages == [f"Additional properties are not allowed ('{key}' was unexpected)"]


def test_its_application_is_that_of_serve_config_yaml(manifest: Any) -> None:
    ours = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert ours["applications"] == shipped["applications"]
    assert ours["applications"][0]["import_path"] == IMPORT_PATH
    assert {m.name for m in parse(manifest["spec"]["serveConfigV2"]).app.models} == {v.name for v in VARIANTS}


def test_replicas_find_room(manifest: Any) -> None:
    """What serving.placement reserves by default, against what the groups offer."""
    limits = {name: c["resources"]["limits"] for name, c in containers(manifest).items()}
    assert groups(manifest)["head"]["rayStartParams"]["num-cpus"] == "0"
    assert float(limits["cpu"]["cpu"]) >= 2 * (0.5 + 1)  # ingress and phi-3-tiny, the old ones and the new
    assert float(limits["gpu"]["cpu"]) >= 2
    assert limits["gpu"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["cpu"]


def test_rules_of_the_operator(manifest: Any) -> None:
    """kuberay: ray-operator/controllers/ray/utils/validation.go and common/pod.go."""
    assert len(manifest["metadata"]["name"]) <= 47
    for name, container in containers(manifest).items():
        assert {"name": "serve", "containerPort": 8000} in container["ports"], name
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_pods_outlive_the_longest_request_and_run_without_root(manifest: Any) -> None:
    """`ray start --block` is process 1 of a pod. It waits for the requests in flight before it ends."""
    longest_request_s = parse(manifest["spec"]["serveConfigV2"]).app.limits.request_timeout_s
    image = (ROOT / "Dockerfile").read_text()
    (drain_timeout_s,) = map(float, re.findall(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", image))
    assert isinstance(ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, float)
    assert longest_request_s < drain_timeout_s
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > longest_request_s
    for group in groups(manifest).values():
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > drain_timeout_s
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_one_image_of_this_version_and_one_ray(manifest: Any) -> None:
    assert {c["image"] for c in containers(manifest).values()} == {f"phi3-serve:{__version__}"}
    ray = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == ray.removeprefix("ray==")
    assert f"-t phi3-serve:{__version__}" in (ROOT / "Dockerfile").read_text()


def test_the_image_sets_for_ray_what_phi3_serve_up_sets_on_any_machine() -> None:
    image = (ROOT / "Dockerfile").read_text()
    variables = proxies.environment("haproxy", port=8000, request_timeout_s=AppConfig().limits.request_timeout_s)
    # What is so only because one machine may have several servers: a container has one.
    own = {name: value for name, value in variables.items() if not name.endswith("_PORT") and "8000" not in value}
    launcher = own.pop("RAY_SERVE_HAPROXY_BINARY_PATH")
    assert f"/usr/local/bin/{Path(launcher).name}" in image
    assert len(own) == 10
    assert all(f"{name}={value}" in image for name, value in own.items())
