"""Errors and warnings that name a parameter as the client sent it.

The engine knows each by the name of its generate parameter.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace

from phi3_serve.core.event import Delta, Done
from phi3_serve.errors import InvalidRequest

_QUOTED_NAME = re.compile(r"`(\w+)`")


async def with_names_sent(
    events: AsyncGenerator[Delta | Done, None], names: Mapping[str, str]
) -> AsyncGenerator[Delta | Done, None]:
    """``events``, in which an InvalidRequest and the warnings have the ``names`` that the client sent."""
    try:
        async for event in events:
            if isinstance(event, Done) and event.warnings:
                yield replace(event, warnings=tuple(_as_sent(warning, names) for warning in event.warnings))
            else:
                yield event
    except InvalidRequest as error:
        raise as_sent(error, names) from error
    finally:
        await events.aclose()


def as_sent(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """``error`` with ``names``, from generate parameters to what the client sent. The rest is no ``param``.

    A ``param`` with dots is a place in the client's body already: no parameter has one in its name.
    """
    param = error.param or ""
    return type(error)(_as_sent(error.message, names), param if "." in param else names.get(param))


def _as_sent(text: str, names: Mapping[str, str]) -> str:
    return _QUOTED_NAME.sub(lambda found: f"`{names.get(found[1], found[1])}`", text)
