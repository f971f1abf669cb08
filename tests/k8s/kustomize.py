"""The part of kustomize that k8s/ uses, so that ``make k8s`` needs no binary. It refuses every other field.

Supported: ``resources`` (files and directories), ``components`` and ``patches``. A patch is a list of operations of JSON
Patch (RFC 6902: add, remove, replace, test) with a target, or deletes an object. ``tests/k8s/test_kustomize.py`` compares the
results with those of ``kubectl kustomize``.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

FILE = "kustomization.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Target(_Strict):
    """The object that a patch changes."""

    kind: str
    name: str


class Patch(_Strict):
    """Operations in a file or in the text itself."""

    path: str | None = None
    patch: str | None = None
    target: Target | None = None


class Operation(_Strict):
    """One operation of JSON Patch."""

    op: Literal["add", "remove", "replace", "test"]
    path: str
    value: Any = None


class Kustomization(_Strict):
    """What a kustomization.yaml of this project may hold."""

    apiVersion: Literal["kustomize.config.k8s.io/v1beta1", "kustomize.config.k8s.io/v1alpha1"]
    kind: Literal["Kustomization", "Component"]
    resources: list[str] = Field(default_factory=list)
    components: list[str] = Field(default_factory=list)
    patches: list[Patch] = Field(default_factory=list)


def render(directory: Path) -> list[dict[str, Any]]:
    """The objects of the kustomization in ``directory``, patched.

    Raises:
        ValueError: a field is not supported, a patch has no object, or a test of a patch fails.
    """
    kustomization = Kustomization.model_validate(yaml.safe_load((directory / FILE).read_text()))
    objects = [made for resource in kustomization.resources for made in _read(directory / resource)]
    for component in kustomization.components:
        objects += render(directory / component)
    for patch in kustomization.patches:
        _apply(patch, objects, directory)
    return objects


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        yield from render(path)
    else:
        yield from yaml.safe_load_all(path.read_text())


def _apply(patch: Patch, objects: list[dict[str, Any]], directory: Path) -> None:
    text = patch.patch if patch.path is None else (directory / patch.path).read_text()
    content = yaml.safe_load(text or "")
    if isinstance(content, dict):
        if content.pop("$patch", None) != "delete" or set(content) != {"apiVersion", "kind", "metadata"}:
            raise ValueError(f"{directory}: only a patch that deletes may be a mapping: {content}")
        objects.remove(_found(Target(kind=content["kind"], name=content["metadata"]["name"]), objects))
        return
    if patch.target is None:
        raise ValueError(f"{directory}: a list of operations needs a target")
    changed = _found(patch.target, objects)
    for operation in content:
        change(changed, Operation.model_validate(operation))


def _found(target: Target, objects: list[dict[str, Any]]) -> dict[str, Any]:
    found = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (target.kind, target.name)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} objects are {target.kind} {target.name}")
    return found[0]


def change(document: dict[str, Any], operation: Operation) -> None:
    """Apply one operation to ``document``.

    Raises:
        ValueError: there is no such place, or a test fails.
    """
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation.path.split("/")[1:]]
    place: Any = document
    try:
        for part in parents:
            place = place[_key(place, part)]
        if operation.op == "add" and isinstance(place, list):
            place.insert(len(place) if last == "-" else int(last), copy.deepcopy(operation.value))
            return
        key = _key(place, last)
        if operation.op == "add":
            place[key] = copy.deepcopy(operation.value)
        elif operation.op == "replace":
            place[key]  # it must be there
            place[key] = copy.deepcopy(operation.value)
        elif operation.op == "remove":
            del place[key]
        elif place[key] != operation.value:
            raise ValueError(f"{operation.path} is {place[key]!r} and must be {operation.value!r}")
    except (KeyError, IndexError) as error:
        raise ValueError(f"{operation.op} {operation.path}: there is no {error}") from None


def _key(place: Any, part: str) -> Any:
    return int(part) if isinstance(place, list) else part
