"""The name of a model, and of its deployment."""

import re

INGRESS_NAME = "ingress"
_API_PREFIXES = {"v1": "OpenAI's", "api": "ollama's"}  # of the paths of an API, and whose it is
_MAX_NAME_LENGTH = 128
_NAME = re.compile(rf"[A-Za-z0-9._/-]{{1,{_MAX_NAME_LENGTH}}}")
_PART_OF_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def deployment_name(model: str) -> str:
    """The Serve deployment of a model. Ray allows no slash in it.

    No two names give the same deployment, because ``ModelConfig`` refuses a name with ``--``.
    """
    return model.replace("/", "--")


def problem_of_model_name(name: str) -> str | None:
    """Why ``name`` cannot be a model's name; None if it can. It becomes a part of URLs and the name of a deployment."""
    parts = name.split("/")
    if not _NAME.fullmatch(name):
        return "must be 1 to 128 letters, digits and . _ - /"
    if not all(map(_PART_OF_NAME.fullmatch, parts)):
        return "must begin and end with a letter or a digit, and so must each part between slashes"
    if "--" in name:
        return "must not have --, which is written for a slash in the name of its deployment"
    if len(deployment_name(name)) > _MAX_NAME_LENGTH:  # Ray's log files have it in their names
        return f"must have at most {_MAX_NAME_LENGTH} characters, each slash counted twice"
    if name == INGRESS_NAME:
        return "is the name of the deployment that receives HTTP"
    if (whose := _API_PREFIXES.get(parts[0])) is not None:
        return f"must not be {parts[0]} or begin with {parts[0]}/, as the paths of {whose} API do"
    return None
