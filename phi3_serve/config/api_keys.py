"""API keys, with their scopes and limits."""

import re
from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from phi3_serve.config.strict_model import StrictModel

KeyScope = Literal["generate", "metrics"]
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ApiKeyConfig(StrictModel):
    """One API key with its scopes and limits. Each ingress replica counts for itself."""

    name: str
    """The name in metrics and in errors: letters, digits and . _ - (at most 64). It is not secret."""
    hash: str
    """SHA-256 of the key in hex. `phi3-serve key` makes both."""
    scopes: tuple[KeyScope, ...] = ("generate", "metrics")
    """`generate` allows every POST, `metrics` allows `GET /metrics`. Other routes are open to every key."""
    max_parallel_requests: int | None = Field(default=None, ge=1)
    """Maximum number of requests at once; more get 429. By default no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Maximum number of prompt and generated tokens a minute; more get 429. By default no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := problem_of_key_name(self.name):
            raise ValueError(problem)
        _check_hash(self.hash, "hash")
        return self


def problem_of_key_name(name: str) -> str | None:
    """Why ``name`` cannot be that of an API key; None if it can."""
    return None if _KEY_NAME.fullmatch(name) else "name must be letters, digits and . _ - (at most 64)"


def _check_hash(value: str, field: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{field} must be 64 hexadecimal digits, the SHA-256 of a key; `phi3-serve key` makes both")


class AuthConfig(StrictModel):
    """API keys. Without any, no key is needed."""

    key_hashes: tuple[str, ...] = ()
    """SHA-256 in hex of each API key that has all scopes and no limit. `phi3-serve key` makes one."""
    keys: tuple[ApiKeyConfig, ...] = ()
    """API keys with a name, scopes and limits."""
    file: str | None = None
    """An absolute path of a YAML file with `key_hashes` and `keys`, such as a mounted Secret. Its keys are accepted
    besides those here. A change of it is noticed within seconds. With a file, every request needs a key, even if the
    file has none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.file is not None and not self.file.startswith("/"):
            raise ValueError(f"file must be an absolute path, and is {self.file!r}")
        for number, key_hash in enumerate(self.key_hashes):
            _check_hash(key_hash, f"key_hashes[{number}]")
        for field in ("name", "hash"):
            values = Counter(getattr(key, field) for key in self.all_keys)
            if doubled := [value for value, count in values.items() if count > 1]:
                raise ValueError(f"two API keys have the {field} `{doubled[0]}`")
        return self

    @property
    def all_keys(self) -> tuple[ApiKeyConfig, ...]:
        """Every key. One without a name is named after the start of its hash."""
        unnamed = [ApiKeyConfig(name=key_hash[:8], hash=key_hash) for key_hash in self.key_hashes]
        return (*unnamed, *self.keys)
