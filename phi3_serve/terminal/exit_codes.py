"""The exit codes of the commands that talk to a server, for scripts."""

from http import HTTPStatus

from phi3_serve.client import Refused, Unreachable
from phi3_serve.errors import Phi3ServeError

FAILED = 1  # the server refused the request, or failed in the middle of the answer
USAGE = 2  # of the command line; typer has the same
NOT_NOW = 3  # the server cannot be reached, is full or has no such model yet; the same command may succeed later
INTERRUPTED = 130  # by Ctrl-C, as in shells

_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class UsageError(Phi3ServeError):
    """The command line or standard input cannot be used."""


def exit_code_of(error: Phi3ServeError) -> int:
    """The exit code of a command that ``error`` has ended."""
    if isinstance(error, Unreachable) or (isinstance(error, Refused) and error.status in _LATER):
        return NOT_NOW
    return FAILED
