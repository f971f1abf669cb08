"""Lines break between words, whatever the pieces of the text."""

import random

import pytest
from rich.cells import cell_len

from phi3_serve.terminal.word_wrap import WordWrap


def wrapped(text: str, width: int, *, seed: int | None = None) -> str:
    wrap, draw = WordWrap(lambda: width), random.Random(seed)
    printed = ""
    while text:
        size = len(text) if seed is None else draw.randint(1, 5)
        printed += wrap.feed(text[:size])
        text = text[size:]
    return printed + wrap.finish()


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three", 20, "one two three"),
        ("one two three", 7, "one two\nthree"),
        ("one two three", 6, "one\ntwo\nthree"),
        ("one two\nthree four", 8, "one two\nthree\nfour"),
        ("a incomprehensible b", 6, "a\nincomprehensible\nb"),
        ("  indented text", 10, "  indented\ntext"),
        ("one \n two", 9, "one\n two"),
        ("一二三四五", 6, "一二三\n四五"),
        ("```\na long line of code\n```\na long line", 8, "```\na long line of code\n```\na long\nline"),
        ("    a long line of code", 8, "    a long line of code"),
        ("| a | long row |\ntwo words", 5, "| a | long row |\ntwo\nwords"),
        ("\n\nx", 5, "\n\nx"),
    ],
)
def test_words_stay_whole(text: str, width: int, expected: str) -> None:
    assert wrapped(text, width) == expected
    for seed in range(5):
        assert wrapped(text, width, seed=seed) == expected


def test_no_line_of_short_words_is_wider_than_the_terminal_and_no_word_is_lost() -> None:
    draw = random.Random(1)
    for seed in range(200):
        words = ["".join(draw.choices("abcé漢🙂", k=draw.randint(1, 5))) for _ in range(40)]
        width = draw.randint(10, 30)
        printed = wrapped(" ".join(words), width, seed=seed)
        assert all(cell_len(line) <= width for line in printed.split("\n"))
        assert "".join(printed.split()) == "".join(words)


def test_a_word_comes_as_soon_as_it_is_complete() -> None:
    wrap = WordWrap(lambda: 80)
    assert [wrap.feed(piece) for piece in ("Hel", "lo", " wor", "ld. ", "漢")] == ["", "", "Hello", " world.", " 漢"]
