"""Prints an answer while it streams: the text to standard output, everything about it to standard error."""

import shutil
import sys
from contextlib import closing

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from phi3_serve.terminal.answer import Answer
from phi3_serve.terminal.word_wrap import WordWrap

# Characters that a terminal obeys instead of showing, except for tab and line feed.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class AnswerPrinter:
    """Prints answers. ``is_verbose``: with the tokens per second of each."""

    def __init__(self, *, is_verbose: bool = False) -> None:
        self.is_verbose = is_verbose
        self._is_terminal = sys.stdout.isatty()
        self._notes = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._reason = ""

    def wait(self, reason: str) -> None:
        """Say why the answer does not come yet, until it comes: with a spinner on a terminal, else in a line."""
        if self._notes.is_terminal:
            if self._status is None:
                self._status = self._notes.status("")
                self._status.start()
            self._status.update(f"{escape(reason)} (Ctrl-C gives up)")
        elif reason != self._reason:
            self._notes.print(reason, markup=False, soft_wrap=True)
        self._reason = reason

    def print(self, answer: Answer) -> None:
        """Print ``answer`` until its end.

        Raises:
            KeyboardInterrupt: after the line of what has come is ended, and the answer on the server too.
        """
        wrap = WordWrap(lambda: shutil.get_terminal_size().columns)
        try:
            with closing(answer.pieces()) as pieces:
                for piece in pieces:
                    self._end_wait()
                    self._write(wrap.feed(_visible(piece)) if self._is_terminal else piece)
        finally:
            self._end_wait()
            self._write(wrap.finish() + ("\n" if answer.text and not answer.text.endswith("\n") else ""))
        self._print_others(answer)
        if answer.was_cut:
            self._notes.print("(cut at its maximum length)", style="dim")
        if self.is_verbose:
            self._notes.print(_statistics(answer), style="dim")

    def _end_wait(self) -> None:
        if self._status is not None:
            self._status.stop()
        self._status, self._reason = None, ""

    def _print_others(self, answer: Answer) -> None:
        """Print the sequences after the first, if the parameters have asked for several."""
        for index, text in sorted(answer.texts.items()):
            if index:
                self._write(f"\n{_visible(text) if self._is_terminal else text}\n")

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()


def _visible(text: str) -> str:
    return text.translate(_CONTROLS)


def _statistics(answer: Answer) -> str:
    parts = [f"prompt {answer.prompt_tokens} tokens", f"answer {answer.tokens} tokens"]
    if answer.first_after_s is not None:
        parts.append(f"{answer.tokens / answer.seconds:.0f} tokens/s")
        parts.append(f"first after {1000 * answer.first_after_s:.0f} ms")
    return ", ".join(parts)
