"""The check of a batch's input file, before any of it is sent."""

from dataclasses import dataclass
from pathlib import Path

from phi3_serve.batch.batch_store import Problem
from phi3_serve.batch.lines import LineError, bounded_lines, read_lines

MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class InputLimits:
    """How large an input file may be."""

    max_lines: int
    max_line_bytes: int


class _TooManyProblems(Exception):
    pass


def check(path: Path, endpoint: str, limits: InputLimits) -> tuple[int, list[Problem]]:
    """The number of requests in the file at ``path``, and the first ``MAX_PROBLEMS`` of its problems."""
    problems: list[Problem] = []

    def note(error: LineError) -> None:
        problems.append(Problem(error.code, error.message, error.param, error.number))
        if len(problems) == MAX_PROBLEMS:
            raise _TooManyProblems

    num_lines = 0
    try:
        with path.open("rb") as file:
            lines = bounded_lines(file, limits.max_line_bytes)
            for _ in read_lines(lines, url=endpoint, max_bytes=limits.max_line_bytes, on_error=note):
                num_lines += 1
                if num_lines > limits.max_lines:
                    too_many = f"The file has more than {limits.max_lines:,} requests (batches.max_requests)."
                    return num_lines, [*problems, Problem("too_many_requests", too_many)]
    except _TooManyProblems:
        return num_lines, problems
    except FileNotFoundError:
        return 0, [missing_file()]
    if not num_lines and not problems:
        problems.append(Problem("empty_file", "The file has no requests.", "input_file_id"))
    return num_lines, problems


def missing_file() -> Problem:
    """The problem of a batch whose input file is gone."""
    return Problem("file_not_found", "The input file is not there any more.", "input_file_id")
