"""What a replica asks of the nodes of a Ray cluster: amounts of resources, and labels."""

import re

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL.pattern}")
_LABEL_RULE = "at most 63 letters, digits and . _ -, with a letter or a digit at both ends"


def as_ray_amount(given: float | None) -> float | None:
    """``given``, an amount of a resource. Raises ValueError if Ray cannot reserve it."""
    if given is not None and round(given, 4) != given:
        raise ValueError(f"must have at most four decimal places, and is {given:g}")
    return given


def as_labels(given: dict[str, str]) -> dict[str, str]:
    """``given``, labels of a node. Raises ValueError for what is not a label of Kubernetes, as Ray has them."""
    for key, value in given.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"`{key}` is not a label: {_LABEL_RULE}, and before it perhaps a domain and a slash")
        if not _LABEL.fullmatch(value):
            raise ValueError(f"the value of {key} is `{value}`, and must be {_LABEL_RULE}")
    return given
