"""The schema of each object in k8s/, read strictly: an unknown field fails, as ``kubectl apply --validate=strict`` does it.

Kubernetes' own kinds: the OpenAPI schemas in the package kubernetes-validate. RayService: KubeRay's CRD (``crd.py``).
The kinds of the Prometheus operator, of the Gateway API and of KEDA: the fields that k8s/ uses, from their CRDs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.k8s.crd import COPY

KUBERNETES = "1.31"  # the oldest version whose schemas the manifests are checked against


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Metadata(_Strict):
    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class _Selector(_Strict):
    matchLabels: dict[str, str]


class _Relabeling(_Strict):
    sourceLabels: list[str]
    targetLabel: str


class _Endpoint(_Strict):
    port: str
    interval: str = Field(pattern=r"^\d+s$")
    relabelings: list[_Relabeling]


class _PodMonitorSpec(_Strict):
    selector: _Selector
    podTargetLabels: list[str]
    podMetricsEndpoints: list[_Endpoint]


class PodMonitor(_Strict):
    """monitoring.coreos.com/v1."""

    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: _Metadata
    spec: _PodMonitorSpec


class _Rule(_Strict):
    alert: str
    expr: str = Field(min_length=1)
    for_: str = Field(pattern=r"^\d+[smh]$", alias="for")
    labels: dict[str, str]
    annotations: dict[str, str]


class _RuleGroup(_Strict):
    name: str
    rules: list[_Rule] = Field(min_length=1)


class _PrometheusRuleSpec(_Strict):
    groups: list[_RuleGroup] = Field(min_length=1)


class PrometheusRule(_Strict):
    """monitoring.coreos.com/v1."""

    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: _Metadata
    spec: _PrometheusRuleSpec


class _Parent(_Strict):
    name: str
    namespace: str


class _Path(_Strict):
    type: Literal["PathPrefix", "Exact"]
    value: str = Field(pattern="^/")


class _Match(_Strict):
    path: _Path


class _Timeouts(_Strict):
    request: str = Field(pattern=r"^\d+s$")
    backendRequest: str = Field(pattern=r"^\d+s$")


class _Backend(_Strict):
    name: str
    port: int


class _HTTPRouteRule(_Strict):
    matches: list[_Match]
    timeouts: _Timeouts
    backendRefs: list[_Backend]


class _HTTPRouteSpec(_Strict):
    parentRefs: list[_Parent]
    hostnames: list[str]
    rules: list[_HTTPRouteRule]


class HTTPRoute(_Strict):
    """gateway.networking.k8s.io/v1."""

    apiVersion: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["HTTPRoute"]
    metadata: _Metadata
    spec: _HTTPRouteSpec


class _ScaleTarget(_Strict):
    apiVersion: Literal["apps/v1"]  # of a RayCluster KEDA finds no scale subresource
    kind: Literal["Deployment"]
    name: str


class _ScaleDown(_Strict):
    stabilizationWindowSeconds: int = Field(ge=0, le=3600)


class _Behavior(_Strict):
    scaleDown: _ScaleDown


class _HorizontalPodAutoscalerConfig(_Strict):
    behavior: _Behavior


class _Advanced(_Strict):
    horizontalPodAutoscalerConfig: _HorizontalPodAutoscalerConfig


class _PrometheusQuery(_Strict):
    serverAddress: str = Field(pattern="^http")
    query: str = Field(min_length=1)
    threshold: str = Field(pattern=r"^\d+(\.\d+)?$")  # all metadata of a trigger are texts


class _Trigger(_Strict):
    type: Literal["prometheus"]
    name: str
    metricType: Literal["AverageValue", "Value"]
    metadata: _PrometheusQuery


class _ScaledObjectSpec(_Strict):
    scaleTargetRef: _ScaleTarget
    minReplicaCount: int = Field(ge=0)
    maxReplicaCount: int = Field(ge=1)
    pollingInterval: int = Field(ge=1)
    advanced: _Advanced
    triggers: list[_Trigger] = Field(min_length=1)


class ScaledObject(_Strict):
    """keda.sh/v1alpha1."""

    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: _Metadata
    spec: _ScaledObjectSpec


OF_OTHERS: Mapping[str, type[BaseModel]] = {
    "PodMonitor": PodMonitor,
    "ScaledObject": ScaledObject,
    "PrometheusRule": PrometheusRule,
    "HTTPRoute": HTTPRoute,
}


def schema_problems(made: Mapping[str, Any]) -> list[str]:
    """One line for each place where an object differs from its schema; of Kubernetes' own kinds only the first one."""
    check: Callable[[Mapping[str, Any]], list[str]]
    if made["kind"] == "RayService":
        check = _of_rayservice
    elif made["kind"] in OF_OTHERS:
        check = _of_other
    else:
        check = _of_kubernetes
    return check(made)


def _of_rayservice(made: Mapping[str, Any]) -> list[str]:
    return [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in _rayservice().iter_errors(made)]


def _of_other(made: Mapping[str, Any]) -> list[str]:
    try:
        OF_OTHERS[made["kind"]].model_validate(made)
    except ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return []


def _of_kubernetes(made: Mapping[str, Any]) -> list[str]:
    try:
        kubernetes_validate.validate(made, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"kind: Kubernetes {KUBERNETES} has no {made['kind']} of {made['apiVersion']}"]
    return []


@functools.cache
def _rayservice() -> Draft202012Validator:
    schema = strict(yaml.load(COPY.read_text(), yaml.CSafeLoader))
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


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
