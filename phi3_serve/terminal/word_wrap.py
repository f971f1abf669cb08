"""Line breaks between words, in a text that still comes."""

from collections.abc import Callable

from rich.cells import cell_len

_WIDE = 2  # cells of a character of Chinese, Japanese or Korean, between any two of which a line may break
_CODE_INDENT = 4  # spaces before a line of code in Markdown
_FENCE = "```"
_ROW = "|"  # begins a row of a table


class WordWrap:
    """Breaks the lines of one text at ``width()`` cells.

    A word is held back until it is complete. Code and rows of tables keep their lines, so that they can be copied.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0  # of the cursor, in cells
        self._gap = ""  # spaces that are not printed yet
        self._word = ""  # that is not printed yet
        self._line = ""  # since the last line break of the text
        self._is_fenced = False
        self._is_verbatim = False  # this line

    def feed(self, text: str) -> str:
        """What can be printed after ``text`` has come."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """What was held back."""
        return self._word_out()

    def _take(self, character: str) -> str:
        if character == "\n":
            return self._line_out()
        self._line += character
        if character in " \t":
            printed = self._word_out()
            self._gap += character
            return printed
        if not self._line[:-1].strip():
            self._is_verbatim = self._is_fenced or character == _ROW or _indent(self._gap) >= _CODE_INDENT
        self._word += character
        return self._word_out() if self._is_verbatim or cell_len(character) == _WIDE else ""

    def _line_out(self) -> str:
        printed = self._word_out() + "\n"
        self._is_fenced ^= self._line.lstrip().startswith(_FENCE)
        self._gap, self._line, self._column, self._is_verbatim = "", "", 0, False
        return printed

    def _word_out(self) -> str:
        """The word, after its gap or on a new line."""
        if not self._word:
            return ""
        width, gap, word = self._width(), self._gap, self._word
        self._gap = self._word = ""
        cells = cell_len(word)
        if self._column and not self._is_verbatim and self._column + cell_len(gap) + cells > width:
            self._column = cells
            return "\n" + word
        self._column += cell_len(gap) + cells
        return gap + word


def _indent(spaces: str) -> int:
    return len(spaces.expandtabs(_CODE_INDENT))
