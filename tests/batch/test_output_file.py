"""The output goes on where it was, and loses nothing that was written."""

from pathlib import Path

import pytest

from phi3_serve.batch.output_file import OutputFile
from phi3_serve.errors import InvalidRequest

LINE = '{"custom_id": "%s"}'


def test_it_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile.opened(path) as output:
        output.write("a", LINE % "a")
        output.write("b", LINE % "b")
    with path.open("a") as file:
        file.write('{"custom_id": "c", "resp')
    with OutputFile.opened(path) as output:
        assert output.answered == {"a", "b"}
        output.write("c", LINE % "c")
    assert path.read_text() == "".join(f"{LINE % name}\n" for name in "abc")


def test_a_line_is_in_the_file_once_it_was_written(tmp_path: Path) -> None:
    with OutputFile.opened(tmp_path / "out.jsonl") as output:
        output.write("a", LINE % "a")
        assert (tmp_path / "out.jsonl").read_text() == LINE % "a" + "\n"


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        OutputFile.opened(path),
        pytest.raises(InvalidRequest, match="is written by another process"),
        OutputFile.opened(path),
    ):
        pass


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear friend,\n")
    with pytest.raises(InvalidRequest, match="line 1, is not an answer of a batch"), OutputFile.opened(path):
        pass
    assert path.read_text() == "Dear friend,\n"


def test_a_place_where_nobody_may_write_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidRequest, match="cannot be written: No such file"),
        OutputFile.opened(tmp_path / "no" / "out"),
    ):
        pass
