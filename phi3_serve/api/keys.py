"""API keys while the server runs: what each may do, and what it has used in this ingress process."""

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from pydantic import ValidationError
from starlette.types import Scope

from phi3_serve import overload
from phi3_serve.api import headers
from phi3_serve.api.key_file import KeyFile, KeyFileError
from phi3_serve.api.token_budget import TokenBudget
from phi3_serve.config.api_keys import ApiKeyConfig, AuthConfig, KeyScope
from phi3_serve.errors import Overloaded

logger = logging.getLogger("phi3_serve")

_STATE = "api_key"


class ApiKey:
    """One key of the config with its requests in flight and its tokens."""

    def __init__(self, config: ApiKeyConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.digest = bytes.fromhex(config.hash)  # SHA-256 of the key
        self._num_running = 0
        self._clock = clock
        self._budget: TokenBudget | None = None
        self.change(config)

    def change(self, config: ApiKeyConfig) -> None:
        """Take the scopes and limits of ``config``; what the key uses stays counted."""
        self.name = config.name
        self._config = config
        if config.tokens_per_minute is None:
            self._budget = None
        elif self._budget is None:
            self._budget = TokenBudget(config.tokens_per_minute, self._clock)
        else:
            self._budget.per_minute = config.tokens_per_minute

    def allows(self, scope: KeyScope) -> bool:
        """Whether the key may be used for ``scope``."""
        return scope in self._config.scopes

    def refusal(self) -> Overloaded | None:
        """Why one more request is too much now."""
        limit, budget = self._config.max_parallel_requests, self._budget
        if limit is not None and self._num_running >= limit:
            return overload.key_has_too_many_requests(self.name, limit)
        if budget is not None and budget.remaining < 1:
            return overload.key_has_used_its_tokens(self.name, budget.per_minute, budget.seconds_until(1))
        return None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count one request as running."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    @property
    def tokens_above_half(self) -> float | None:
        """Tokens that may be used now until half of those of a minute are left; None without a limit."""
        return None if self._budget is None else self._budget.remaining - self._budget.per_minute / 2

    def spend(self, num_tokens: int) -> None:
        """Count tokens as used; without a limit of tokens they are not counted."""
        if self._budget is not None:
            self._budget.spend(num_tokens)

    def rate_limit_headers(self) -> dict[str, str]:
        """OpenAI's headers for the limits that the key has.

        A limit of requests at once is free again when a request ends, so it has no time of reset.
        """
        values = {}
        if (limit := self._config.max_parallel_requests) is not None:
            values[headers.LIMIT_REQUESTS] = str(limit)
            values[headers.REMAINING_REQUESTS] = str(max(0, limit - self._num_running))
        if (budget := self._budget) is not None:
            values[headers.LIMIT_TOKENS] = str(budget.per_minute)
            values[headers.REMAINING_TOKENS] = str(max(0, math.floor(budget.remaining)))
            values[headers.RESET_TOKENS] = f"{budget.seconds_until(budget.per_minute):.3f}s"
        return values


class ApiKeys:
    """The keys that the server knows. They may be replaced while it runs, and so may their file.

    Raises:
        KeyFileError: the file of ``auth`` cannot be used.
    """

    def __init__(self, auth: AuthConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys: list[ApiKey] = []
        self._clock = clock
        self._auth: AuthConfig
        self._file: KeyFile | None
        self.replace(auth)

    @property
    def are_required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys) or self._file is not None

    def replace(self, auth: AuthConfig) -> None:
        """Accept the keys of ``auth`` and of its file, and no others. A key that stays keeps its usage.

        Raises:
            KeyFileError: the file cannot be used. The keys stay as they were.
        """
        file = None if auth.file is None else KeyFile(auth.file, self._clock)
        self._accept(auth if file is None else _together(auth, file.read()))
        self._auth, self._file = auth, file

    def _look_at_file(self) -> None:
        """Accept the keys of a file that has changed. One that cannot be used changes nothing."""
        if self._file is not None and self._file.has_changed():
            try:
                self._accept(_together(self._auth, self._file.read()))
            except KeyFileError as error:
                logger.error("%s; the keys stay as they were", error.message)
            else:
                logger.info("the API keys have been read again")

    def _accept(self, auth: AuthConfig) -> None:
        known = {key.digest: key for key in self._keys}
        keys = []
        for config in auth.all_keys:
            key = known.get(bytes.fromhex(config.hash)) or ApiKey(config)
            key.change(config)
            keys.append(key)
        self._keys = keys

    def named(self, name: str) -> ApiKey | None:
        """The key of this name."""
        return next((key for key in self._keys if key.name == name), None)

    def of_headers(self, headers: Mapping[str, str]) -> ApiKey | None:
        """The key in the header ``Authorization`` or, as Anthropic's clients send it, in ``x-api-key``."""
        self._look_at_file()
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (key := self._known(given.strip())) is not None:
            return key
        return self._known(headers.get("x-api-key", ""))

    def _known(self, given: str) -> ApiKey | None:
        digest = hashlib.sha256(given.encode("latin-1")).digest()  # latin-1 restores the bytes of the header
        # The time must not depend on which digest matches, so all are compared, each in constant time.
        matches = [key for key in self._keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None


def set_key(scope: Scope, key: ApiKey) -> None:
    """Remember that ``key`` has sent the request."""
    scope.setdefault("state", {})[_STATE] = key


def key_of(scope: Scope) -> ApiKey | None:
    """The key that has sent the request, if the server has checked one."""
    return cast(ApiKey | None, scope.get("state", {}).get(_STATE))


def hash_of(key: str) -> str:
    """The SHA-256 of ``key`` in hex, for the config. Keys are random, so a slow hash would not be safer."""
    return hashlib.sha256(key.encode()).hexdigest()


def _together(auth: AuthConfig, of_file: AuthConfig) -> AuthConfig:
    """The keys of both."""
    try:
        return AuthConfig(key_hashes=auth.key_hashes + of_file.key_hashes, keys=auth.keys + of_file.keys)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise KeyFileError(f"auth.file: {auth.file}: with the keys of the config, {reason}") from None
