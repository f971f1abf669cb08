"""``phi3-serve batch``: answers a file of requests with a running server, as fast as the server can."""

import asyncio
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from phi3_serve.batch import runner
from phi3_serve.batch.lines import Reply, RequestLine, answer_line, read_lines
from phi3_serve.batch.output_file import OutputFile
from phi3_serve.errors import InvalidRequest, Phi3ServeError

REQUEST_ID = "x-request-id"
TIMEOUT_S = 3600.0  # of one request; the server's own limit comes first
GIVE_UP_AFTER_S = 300.0  # without a server that answers
_LONGEST_PAUSE_S = 15.0


class BatchFile:
    """Requests of one file, and the answers in another one, which goes on where it was."""

    def __init__(self, source: Path, target: Path, *, most_at_once: int, api_key: str | None) -> None:
        self._source, self._target = source, target
        self._most_at_once = most_at_once
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.num_errors = 0  # requests that got an error as their answer, in earlier runs, too

    def check(self) -> None:
        """Raise InvalidRequest if the file of requests cannot be read, or a line is not a request."""
        for _ in self._lines():
            pass

    def run(self, url: str) -> None:
        """Answer what has no answer yet, with the server at ``url``.

        Raises:
            InvalidRequest: a file cannot be read or written, or a line is not a request; nothing was sent.
            Phi3ServeError: the server did not answer for minutes. The answers so far are in the file.
        """
        root = (url if "//" in url else f"http://{url}").rstrip("/")
        wanted = {line.custom_id for line in self._lines()}
        with OutputFile.opened(self._target) as output, _progress() as progress:
            if strangers := output.answered - wanted:
                raise InvalidRequest(
                    f"{self._target} has an answer to {min(strangers)!r}, which {self._source} does not ask; "
                    "give another file for the answers."
                )
            self.num_errors = output.num_errors
            task = progress.add_task("", total=len(wanted), completed=len(output.answered), errors=self._errors)
            try:
                asyncio.run(self._answer_rest(root, output, progress, task))
            except* Phi3ServeError as group:
                raise group.exceptions[0] from None

    @property
    def _errors(self) -> str:
        return f"{self.num_errors} errors" if self.num_errors else ""

    def _lines(self) -> Iterator[RequestLine]:
        try:
            with self._source.open("rb") as file:
                yield from read_lines(file)
        except OSError as error:
            raise InvalidRequest(f"{self._source} cannot be read: {error.strerror}.") from None

    async def _answer_rest(self, root: str, output: OutputFile, progress: Progress, task: TaskID) -> None:
        def take(line: RequestLine, reply: Reply) -> None:
            output.write(line.custom_id, answer_line(line, reply))
            self.num_errors += not reply.is_answer
            progress.update(task, advance=1, errors=self._errors)

        rest = (line for line in self._lines() if line.custom_id not in output.answered)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers) as session:
            await runner.run(rest, lambda line: _send(session, root, line), take, most_at_once=self._most_at_once)


async def _send(session: aiohttp.ClientSession, root: str, line: RequestLine) -> Reply:
    """The reply to ``line``. A server that cannot be reached, for example because it restarts, is asked again."""
    pause_s, give_up_at = 0.5, math.inf
    while True:
        try:
            async with session.post(root + line.url, json=line.body) as response:
                return await _reply(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            give_up_at = min(give_up_at, time.monotonic() + GIVE_UP_AFTER_S)
            if time.monotonic() >= give_up_at:
                raise Phi3ServeError(f"{root} cannot be reached: {str(error) or type(error).__name__}.") from error
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _reply(response: aiohttp.ClientResponse) -> Reply:
    text = await response.text(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        body = text  # of a proxy on the way
    retry_after = response.headers.get("Retry-After", "")
    retry_after_s = float(retry_after) if retry_after.isdecimal() else None
    return Reply(response.status, body, response.headers.get(REQUEST_ID), retry_after_s)


def _progress() -> Progress:
    return Progress(
        TextColumn("answered"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[errors]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
