"""The ``user_config`` of a deployment, checked."""

import logging
from collections.abc import Mapping
from typing import Generic, TypeVar

from pydantic import ValidationError

from phi3_serve.config.user_config import LiveConfig

logger = logging.getLogger("ray.serve")

Live = TypeVar("Live", bound=LiveConfig)


class LiveSettings(Generic[Live]):
    """The last ``user_config`` that was valid.

    Serve ends a replica whose ``reconfigure`` raises. A mistyped key must not end a server that runs, so a wrong
    ``user_config`` is logged as an error and changes nothing. A replica that starts with one fails.
    """

    def __init__(self, schema: type[Live]) -> None:
        self._schema = schema
        self._valid: Live | None = None

    def read(self, user_config: Mapping[str, object]) -> Live:
        """``user_config``, or the last one if it is wrong.

        Raises:
            ValidationError: ``user_config`` is wrong, and there was none before.
        """
        try:
            self._valid = self._schema.model_validate(user_config)
        except ValidationError as error:
            if self._valid is None:
                raise
            for problem in error.errors():
                place = ".".join(["user_config", *map(str, problem["loc"])])
                message = problem["msg"].removeprefix("Value error, ")
                logger.error("The previous user_config stays. %s: %s", place, message)
        return self._valid
