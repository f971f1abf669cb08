"""What the middleware has found out about a request, for the routes."""

from typing import cast

from starlette.types import Scope

from phi3_serve.observability.request_record import RequestRecord

RECORD = "record"


def request_id_of(scope: Scope) -> str:
    """The id that the client has given, or the new one."""
    return cast(str, scope["state"]["request_id"])


def record_of(scope: Scope) -> RequestRecord | None:
    """The record of the request, if there will be a log or a trace of it."""
    return cast(RequestRecord | None, scope["state"].get(RECORD))
