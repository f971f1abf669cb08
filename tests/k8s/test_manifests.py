"""k8s/: every kustomization can be applied, and each kind of mistake is noticed."""

import copy
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants

from phi3_serve import __version__
from phi3_serve.config.app import AppConfig
from phi3_serve.launch import proxy as proxies
from phi3_serve.launch.config_file import IMPORT_PATH
from tests.image.dockerfile import stages_of
from tests.k8s.environment import unknown
from tests.k8s.kustomize import Operation, change, render
from tests.k8s.manifests import COMPONENTS, K8S, KUSTOMIZATIONS, ONE_FILE, objects_of, one_file
from tests.k8s.rules import CATALOGUE, ROOT, configs, drain_timeout_s, names_of_models, problems

GPU_GROUP, CPU_GROUP = 1, 0  # in workerGroupSpecs of the base
WORKERS = "/spec/rayClusterConfig/workerGroupSpecs"
HEAD = "/spec/rayClusterConfig/headGroupSpec/template/spec"


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_it_can_be_applied(name: str) -> None:
    assert problems(objects_of(name)) == []


def test_one_file_is_the_rendered_overlay() -> None:
    assert ONE_FILE.read_text() == one_file(), "run `make k8s`"
    assert len(list(yaml.safe_load_all(ONE_FILE.read_text()))) == 1


def test_one_file_serves_what_serve_config_yaml_serves() -> None:
    ours = yaml.safe_load(yaml.safe_load(ONE_FILE.read_text())["spec"]["serveConfigV2"])
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert ours["applications"][0]["args"].pop("cluster") == {"elastic": True}
    assert ours["applications"] == shipped["applications"]
    assert ours["applications"][0]["import_path"] == IMPORT_PATH


@pytest.mark.parametrize("name", ["base", "overlays/single-gpu", "overlays/ha", "overlays/incremental-upgrade"])
def test_every_variant_is_served(name: str) -> None:
    (config,) = configs(objects_of(name))
    assert names_of_models(config[1]) == CATALOGUE


def found_in(name: str, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The objects of a kustomization, and the first of ``kind`` among them, both to be changed."""
    objects = copy.deepcopy(objects_of(name))
    return objects, next(made for made in objects if made["kind"] == kind)


def replace_config(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def replace(service: dict[str, Any]) -> None:
        assert old in service["spec"]["serveConfigV2"]
        service["spec"]["serveConfigV2"] = service["spec"]["serveConfigV2"].replace(old, new, 1)

    return replace


def operation(op: Any, path: str, value: Any = None) -> Callable[[dict[str, Any]], None]:
    return lambda made: change(made, Operation(op=op, path=path, value=value))


# The kustomization, the kind of the object, the mistake, and what the message says.
MISTAKES: Sequence[tuple[str, str, Callable[[dict[str, Any]], None], str]] = [
    ("base", "RayService", operation("add", "/spec/serveConfig", "x"), "Additional properties are not allowed ('serveConfig' was unexpected)"),
    ("base", "RayService", operation("add", f"{HEAD}/container", []), "('container' was unexpected)"),
    ("base", "RayService", operation("add", f"{WORKERS}/0/minReplica", 1), "('minReplica' was unexpected)"),
    ("base", "Job", operation("add", "/spec/template/spec/restartPolice", "x"), "'restartPolice' was unexpected"),
    ("base", "NetworkPolicy", operation("add", "/spec/ingres", []), "'ingres' was unexpected"),
    ("overlays/kaito-compat", "Deployment", operation("add", "/spec/replica", 1), "'replica' was unexpected"),
    ("overlays/ha", "HTTPRoute", operation("add", "/spec/hostname", []), "spec.hostname: Extra inputs are not permitted"),
    ("overlays/ha", "PodMonitor", operation("add", "/spec/podMetricsEndpoints/0/prot", ""), "prot: Extra inputs are not permitted"),
    ("base", "RayService", replace_config("min_replicas", "min_replica"), "unknown key `min_replica`; did you mean `min_replicas`?"),
    ("base", "RayService", operation("remove", f"{WORKERS}/{GPU_GROUP}/template/spec/containers/0/resources/limits/nvidia.com~1gpu"), "model phi-3-mini-4k-instruct: needs 2 CPU and 1 GPU and the label phi3-serve/group=gpu-mini together"),
    ("base", "RayService", replace_config("min_replicas: 0\n", "min_replicas: 0\n          num_gpus: 0\n"), "model phi-3-mini-4k-instruct: is for a GPU and reserves none (num_gpus)"),
    ("base", "RayService", replace_config("    args:", "    deployments: [{name: phi-3-mini-4k-instruct, ray_actor_options: {num_cpus: 4}}]\n    args:"), "ray_actor_options of phi-3-mini-4k-instruct replace num_gpus"),
    ("base", "RayService", operation("replace", f"{WORKERS}/{GPU_GROUP}/labels", {}), "needs the label phi3-serve/group=gpu-mini"),
    ("base", "RayService", operation("remove", f"{HEAD}/containers/0/ports/6"), "group head: its container must have the port serve, 8000"),
    ("base", "RayService", operation("replace", f"{WORKERS}/{CPU_GROUP}/template/spec/containers/0/ports", []), "group cpu: its container must have the port serve, 8000"),
    ("base", "RayService", operation("add", f"{HEAD}/containers/0/env", [{"name": "RAY_SERVE_ENABLE_HAPROXY", "value": "1"}]), "environment variable RAY_SERVE_ENABLE_HAPROXY: neither"),
    ("base", "Job", operation("replace", "/spec/template/spec/containers/0/env/0/name", "HF_HOM"), "environment variable HF_HOM: neither"),
    ("base", "RayService", replace_config("{elastic: true}", "{elastic: false}"), "args.cluster.elastic: must be true"),
    ("base", "RayService", operation("replace", f"{HEAD}/terminationGracePeriodSeconds", 600), "terminationGracePeriodSeconds must be above 615"),
    ("base", "RayService", replace_config("default_model", "limits: {request_timeout_s: 900}\n      default_model"), "rayClusterDeletionDelaySeconds must be above 900"),
    ("base", "RayService", operation("replace", f"{WORKERS}/0/template/spec/volumes/1/emptyDir/sizeLimit", "512Mi"), "object-store-memory: is 1073741824 bytes, and /dev/shm has 536870912"),
    ("base", "PersistentVolumeClaim", operation("replace", "/metadata/name", "weights"), "there is no PersistentVolumeClaim phi3-serve-weights"),
    ("base", "PodDisruptionBudget", operation("replace", "/spec/selector/matchLabels", {"a": "b"}), "selects no pod of this overlay"),
    ("base", "PodDisruptionBudget", operation("replace", "/spec", {"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/component": "cpu"}}}), "spec.minAvailable must be a number of pods below 2, and is None"),
    ("base", "PodDisruptionBudget", operation("replace", "/spec/minAvailable", "50%"), "spec.minAvailable must be a number of pods below 2, and is 50%"),
    ("overlays/ha", "PodDisruptionBudget", operation("replace", "/spec/minAvailable", 3), "spec.minAvailable must be a number of pods below 3, and is 3"),
    ("overlays/ha", "HTTPRoute", operation("replace", "/spec/rules/0/backendRefs/0/port", 80), "must lead to ('phi3-serve-serve-svc', 8000)"),
    ("overlays/ha", "HTTPRoute", operation("replace", "/spec/rules/0/timeouts/request", "60s"), "its timeouts must be above 600 s"),
    ("overlays/kaito-keda", "ScaledObject", operation("add", "/spec/minReplicas", 1), "spec.minReplicas: Extra inputs are not permitted"),
    ("overlays/kaito-keda", "ScaledObject", operation("replace", "/spec/scaleTargetRef/kind", "RayCluster"), "spec.scaleTargetRef.kind: Input should be 'Deployment'"),
    ("overlays/kaito-keda", "ScaledObject", operation("replace", "/spec/triggers/0/metadata/threshold", 11), "threshold: Input should be a valid string"),
    ("overlays/kaito-keda", "ScaledObject", operation("replace", "/spec/triggers/0/metadata/query", "sum(phi3_serve_num_requests_running)"), "GET /metrics has no phi3_serve_num_requests_running"),
    ("overlays/kaito-keda", "ScaledObject", operation("replace", "/spec/scaleTargetRef/name", "phi-3"), "there is no Deployment phi-3"),
    ("overlays/kaito-keda", "ScaledObject", operation("replace", "/spec/minReplicaCount", 9), "minReplicaCount must be at most maxReplicaCount"),
    ("overlays/kaito-keda", "Deployment", operation("add", "/spec/replicas", 1), "each apply would reset spec.replicas"),
    ("base", "Job", operation("replace", "/spec/template/spec/automountServiceAccountToken", True), "automountServiceAccountToken must be false"),
    ("base", "Job", operation("replace", "/spec/template/spec/containers/0/image", "phi3-serve:latest"), "image phi3-serve:latest must be"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "plant", "message"), MISTAKES, ids=[text for *_, text in MISTAKES])
def test_a_mistake_is_noticed(name: str, kind: str, plant: Callable[[dict[str, Any]], None], message: str) -> None:
    objects, changed = found_in(name, kind)
    plant(changed)
    found = problems(objects)
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    "labels",  # of the pod in helm-chart/kuberay-operator and in ray-operator/config/manager of KubeRay
    [
        {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/component": "kuberay-operator"},
        {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"},
    ],
    ids=["helm", "kustomize"],
)
def test_the_operator_reaches_the_dashboard(labels: dict[str, str]) -> None:
    _, policy = found_in("base", "NetworkPolicy")
    (rule,) = [rule for rule in policy["spec"]["ingress"] if {"port": 8265, "protocol": "TCP"} in rule.get("ports", [])]
    (origin,) = rule["from"]
    assert origin["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("name", [name for name in KUSTOMIZATIONS if name not in COMPONENTS])
def test_kustomize_renders_the_same(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(K8S / name)], capture_output=True, text=True, check=True)
    theirs = list(yaml.safe_load_all(done.stdout))

    def key(made: dict[str, Any]) -> tuple[str, str]:
        return made["kind"], made["metadata"]["name"]

    assert sorted(theirs, key=key) == sorted(objects_of(name), key=key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("namePrefix: x-", "namePrefix\n  Extra inputs are not permitted"),
        ("patches: [{patch: '[{op: test, path: /kind, value: Job}]', target: {kind: Service, name: s}}]", "/kind is 'Service' and must be 'Job'"),
        ("patches: [{patch: '[{op: remove, path: /spec/x}]', target: {kind: Service, name: s}}]", "remove /spec/x: there is no 'x'"),
        ("patches: [{patch: '[]', target: {kind: Job, name: s}}]", "0 objects are Job s"),
    ],
)  # fmt: skip
def test_what_our_renderer_does_not_do_is_refused(tmp_path: Path, text: str, message: str) -> None:
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [service.yaml]\n"
    (tmp_path / "kustomization.yaml").write_text(head + text)
    (tmp_path / "service.yaml").write_text("{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {}}")
    with pytest.raises(ValueError, match=re.escape(message)):
        render(tmp_path)


def test_the_drain_of_the_image_is_one_that_ray_reads() -> None:
    assert isinstance(ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, float)
    assert drain_timeout_s() > AppConfig().limits.request_timeout_s


def test_the_image_has_this_version_in_its_first_lines() -> None:
    assert f"-t phi3-serve:{__version__} " in (ROOT / "Dockerfile").read_text()


def test_the_image_sets_for_ray_what_phi3_serve_up_sets_on_any_machine() -> None:
    image = (ROOT / "Dockerfile").read_text()
    variables = proxies.environment("haproxy", port=8000, request_timeout_s=AppConfig().limits.request_timeout_s)
    # What is so only because one machine may have several servers: a container has one.
    own = {name: value for name, value in variables.items() if not name.endswith("_PORT") and "8000" not in value}
    launcher = own.pop("RAY_SERVE_HAPROXY_BINARY_PATH")
    assert f"/usr/local/bin/{Path(launcher).name}" in image
    assert len(own) == 10
    assert all(f"{name}={value}" in image for name, value in own.items())


def test_the_image_sets_no_variable_that_nothing_reads() -> None:
    lines = [
        one for stage in stages_of(ROOT / "Dockerfile").values() for one in stage.instructions if one.name == "ENV"
    ]
    found = {word.split("=")[0] for line in lines for word in line.words}
    assert "RAY_SERVE_ENABLE_HA_PROXY" in found
    assert [problem for name in sorted(found) if (problem := unknown(name))] == []
