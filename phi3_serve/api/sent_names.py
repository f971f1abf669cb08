"""Errors that name a parameter as the client sent it. The engine knows each by the name of its generate parameter."""

import re
from collections.abc import AsyncGenerator, Mapping
from typing import TypeVar

from phi3_serve.errors import InvalidRequest

T = TypeVar("T")

_QUOTED_NAME = re.compile(r"`(\w+)`")


async def with_names_sent(events: AsyncGenerator[T, None], names: Mapping[str, str]) -> AsyncGenerator[T, None]:
    """``events`` as they are; an InvalidRequest among them has the ``names`` that the client sent."""
    try:
        async for event in events:
            yield event
    except InvalidRequest as error:
        raise as_sent(error, names) from error
    finally:
        await events.aclose()


def as_sent(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """``error`` with ``names``, from generate parameters to what the client sent. The rest is no ``param``."""
    message = _QUOTED_NAME.sub(lambda found: f"`{names.get(found[1], found[1])}`", error.message)
    return type(error)(message, names.get(error.param or ""))
