"""One batch from where it is to its end: the input is checked, the requests are answered, the answers become files."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from phi3_serve.batch import runner
from phi3_serve.batch.batch_store import BatchRequest, Ending, Progress, Status
from phi3_serve.batch.directory import OwnStores
from phi3_serve.batch.lines import Reply, RequestLine, answer_line, read_lines, unanswered_line
from phi3_serve.batch.object_id import FILE_ID
from phi3_serve.batch.output_file import OutputFile
from phi3_serve.batch.usage import usage_of
from phi3_serve.batch.validation import InputLimits, check, missing_file

WATCH_INTERVAL_S = 0.5
MOST_AT_ONCE = 128  # requests of one batch; the share of batches may allow fewer
PURPOSE = "batch_output"
_EXPIRED = "batch_expired", "This request was not answered before the end of the completion window."


class BatchRun:
    """Runs one batch. All that it knows is in ``stores``, so another process can go on where this one was."""

    def __init__(
        self, request: BatchRequest, stores: OwnStores, send: runner.Send, limits: InputLimits, keep_s: int
    ) -> None:
        """``keep_s``: seconds for which the files of the answers are kept, unless the client has said it."""
        self._request = request
        self._files, self._batches = stores.files, stores.batches
        self._input = stores.files.content(request.input_file_id)
        self._output, self._errors = stores.batches.output(request.id), stores.batches.errors(request.id)
        self._send = send
        self._limits = limits
        self._keep_s = keep_s
        self._progress = Progress()

    async def run(self) -> None:
        """Bring the batch from where it is to its end.

        Raises:
            OSError: a file cannot be read or written. The batch can go on later.
        """
        self._progress = self._batches.progress(self._request.id)
        if self._progress.status == "validating":
            await self._validate()
        if self._progress.status == "in_progress":
            self._progress.ending = await self._answer()
            self._enter("finalizing")
        if self._progress.status == "finalizing":
            await asyncio.to_thread(self._finalize)

    async def _validate(self) -> None:
        num_lines, problems = await asyncio.to_thread(check, self._input, self._request.endpoint, self._limits)
        if problems:
            self._progress.problems = problems
            self._enter("failed")
            return
        self._progress.num_total = num_lines
        self._progress.output_file_id, self._progress.error_file_id = FILE_ID.new(), FILE_ID.new()
        self._enter("in_progress")

    async def _answer(self) -> Ending:
        """Answer what has no answer yet, until the batch is complete, cancelled or expired."""
        with ExitStack() as stack:
            try:
                lines = stack.enter_context(self._input.open("rb"))
            except FileNotFoundError:
                self._progress.problems = [missing_file()]
                return "failed"
            answers = await asyncio.to_thread(stack.enter_context, OutputFile.opened(self._output, is_own=True))
            errors = await asyncio.to_thread(stack.enter_context, OutputFile.opened(self._errors, is_own=True))
            rest = _without_answer(lines, answers, errors)

            def take(line: RequestLine, reply: Reply) -> None:
                target = answers if reply.is_answer else errors
                target.write(line.custom_id, answer_line(line, reply))
                self._count(answers, errors)

            self._count(answers, errors)
            ending = await self._until_ending(rest, take)
            if ending == "expired":
                lines.seek(0)
                await asyncio.to_thread(_expire, _without_answer(lines, answers, errors), errors)
                self._count(answers, errors)
            return ending

    async def _until_ending(self, rest: Iterator[RequestLine], take: runner.Take) -> Ending:
        first = await asyncio.to_thread(next, rest, None)  # behind all that have an answer, which takes a while
        if first is None:
            return "completed"
        if (ending := self._early_ending()) is not None:
            return ending
        answering = asyncio.ensure_future(
            runner.run(chain((first,), rest), self._send, take, most_at_once=MOST_AT_ONCE)
        )
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return watching.result()
            answering.result()
            return "completed"
        finally:
            for task in (answering, watching):
                task.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)

    async def _watch(self) -> Ending:
        """Save the counts now and then, until the batch is cancelled or expired."""
        num_saved = -1
        while (ending := self._early_ending()) is None:
            if (num_now := self._progress.num_completed + self._progress.num_failed) != num_saved:
                self._batches.save(self._request.id, self._progress)
                num_saved = num_now
            await asyncio.sleep(WATCH_INTERVAL_S)
        return ending

    def _early_ending(self) -> Ending | None:
        """How the batch ends now, whatever has no answer yet."""
        if self._batches.cancelled_at(self._request.id) is not None:
            return "cancelled"
        return "expired" if time.time() >= self._request.expires_at else None

    def _count(self, answers: OutputFile, errors: OutputFile) -> None:
        self._progress.num_completed = len(answers.answered)
        self._progress.num_failed = len(errors.answered)

    def _finalize(self) -> None:
        """Let the answers be files. A second call finishes what the first one began."""
        progress = self._progress
        assert progress.ending is not None  # noqa: S101 - set before this status
        progress.output_file_id = self._as_file(progress.output_file_id, self._output, "output")
        progress.error_file_id = self._as_file(progress.error_file_id, self._errors, "error")
        if progress.output_file_id is not None:
            progress.usage = usage_of(self._files.content(progress.output_file_id))
        self._enter(progress.ending)
        self._output.unlink(missing_ok=True)
        self._errors.unlink(missing_ok=True)

    def _as_file(self, file_id: str | None, path: Path, name: str) -> str | None:
        """``file_id``, which the answers at ``path`` become; None if there are none."""
        if file_id is None:
            return None
        is_empty = not path.exists() or not path.stat().st_size
        if is_empty and not self._files.content(file_id).exists():
            return None
        self._files.adopt(
            file_id,
            path,
            filename=f"{self._request.id}_{name}.jsonl",
            purpose=PURPOSE,
            expires_after_s=self._request.output_expires_after_s or self._keep_s,
        )
        return file_id

    def _enter(self, status: Status) -> None:
        self._progress.status = status
        self._progress.times[status] = int(time.time())
        self._batches.save(self._request.id, self._progress)


def _without_answer(lines: Iterable[bytes], answers: OutputFile, errors: OutputFile) -> Iterator[RequestLine]:
    for line in read_lines(lines):
        if line.custom_id not in answers.answered and line.custom_id not in errors.answered:
            yield line


def _expire(rest: Iterator[RequestLine], errors: OutputFile) -> None:
    for line in rest:
        errors.write(line.custom_id, unanswered_line(line, *_EXPIRED))
