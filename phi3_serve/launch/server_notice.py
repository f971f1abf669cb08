"""What the terminal of ``phi3-serve up`` shows of its server: what loads, how far it is, and how to call it.

Ray's log is in files. A terminal gets one line that changes while models load; a file or a pipe gets a line of progress
every ten seconds.
"""

import contextlib
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from phi3_serve.options import DEFAULT_URL

POLL_INTERVAL_S = 0.5
CALM_POLL_INTERVAL_S = 5.0  # when the server is ready and nothing loads
PROGRESS_INTERVAL_S = 10.0
NOT_READY, UNAUTHORIZED = 503, 401


class ServerNotice:
    """Prints to ``console`` what the server at ``url`` says about its models.

    ``started_at_once`` are the models that no request has to start. If another one cannot run here, whoever asks for
    it is told.
    """

    def __init__(self, url: str, console: Console, started_at_once: Collection[str]) -> None:
        self._url = url
        self._console = console
        self._started_at_once = started_at_once
        self._is_ready = False
        self._loading: dict[str, float] = {}  # when a line about the model was last printed
        self._down: set[str] = set()  # models of which it was printed that they cannot be loaded or run
        self._status: Status | None = None

    def run(self, is_over: threading.Event) -> None:
        """Ask the server again and again until ``is_over``."""
        while not is_over.is_set():
            if readiness := _readiness(self._url):
                self._show(readiness["models"], is_ready=readiness["ready"])
            is_calm = self._is_ready and not self._loading
            is_over.wait(CALM_POLL_INTERVAL_S if is_calm else POLL_INTERVAL_S)
        self._end_status()

    def _show(self, models: Mapping[str, Any], *, is_ready: bool) -> None:
        loading = {name: state.get("detail", "") for name, state in models.items() if state["state"] == "loading"}
        for name, state in models.items():
            if (problem := self._problem(name, state)) and name not in self._down:
                self._down.add(name)
                rest = " The other models do not wait for it." if len(models) > 1 else ""
                self._print(f"Model {name} {problem}: {state['detail']}{rest}")
            if state["state"] == "ready" and (name in self._loading or name in self._down):
                self._down.discard(name)
                self._print(f"Model {name} is ready.")
        self._loading = {name: time for name, time in self._loading.items() if name in loading}
        self._show_progress(loading)
        if is_ready and not self._is_ready:
            self._is_ready = True
            self._print_how_to_call()

    def _problem(self, name: str, state: Mapping[str, Any]) -> str:
        """Why the model will not answer, in words; empty if it may."""
        if state["state"] == "failed":
            return "cannot be loaded"
        is_unplaceable = state["state"] == "unplaceable" and name in self._started_at_once
        return "cannot run here" if is_unplaceable else ""

    def _show_progress(self, details: Mapping[str, str]) -> None:
        lines = [f"{name}: {detail.removeprefix(f'{name}: ')}" for name, detail in details.items()]
        now = time.monotonic()
        if self._console.is_terminal:
            self._loading = dict.fromkeys(details, now)
            if lines:
                self._show_status("; ".join(lines))
            else:
                self._end_status()
            return
        for name, line in zip(details, lines, strict=True):
            if now - self._loading.get(name, float("-inf")) >= PROGRESS_INTERVAL_S:
                self._loading[name] = now
                self._print(line)

    def _show_status(self, text: str) -> None:
        if self._status is None:
            self._status = self._console.status("")
            self._status.start()
        self._status.update(escape(text))

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print_how_to_call(self) -> None:
        url = self._url
        where = "" if url == DEFAULT_URL else f" --url {url}"
        asks_for_key = _asks_for_key(url)
        key, variable = ("-H 'Authorization: Bearer KEY' ", "PHI3_SERVE_API_KEY=KEY ") if asks_for_key else ("", "")
        body = '{"prompt": "<|user|> Who are you?<|end|><|assistant|>"}'
        self._end_status()
        self._print(
            f"Ready. Ctrl-C stops the server.\n"
            f"  Page      {url}/ui\n"
            f"  Terminal  {variable}phi3-serve chat{where}\n"
            f"  API       {url}/chat, {url}/v1 (parameters: {url}/docs)\n"
            f"  curl {url}/chat {key}-H 'Content-Type: application/json' -d '{body}'"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _readiness(url: str) -> Any:
    """The answer of ``/ready``; None while nobody gives it."""
    try:
        with _opened(f"{url}/ready") as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(ValueError):  # the proxy has an answer of its own before it knows the server
            answer = json.load(error)
            return answer if error.code == NOT_READY else None
    except (OSError, ValueError):
        pass
    return None


def _asks_for_key(url: str) -> bool:
    """Whether the server refuses a request without an API key."""
    try:
        with _opened(f"{url}/v1/models"):
            return False
    except urllib.error.HTTPError as error:
        with error:
            return error.code == UNAUTHORIZED
    except OSError:
        return False


def _opened(url: str) -> Any:
    # Our own address, so its certificate need not be known.
    context = ssl._create_unverified_context() if url.startswith("https") else None  # noqa: S323
    return urllib.request.urlopen(url, timeout=5, context=context)  # noqa: S310
