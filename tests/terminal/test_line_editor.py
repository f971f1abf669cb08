import pytest

from phi3_serve.terminal.line_editor import is_complete, unquoted


@pytest.mark.parametrize(
    ("text", "complete", "meant"),
    [
        ("Hi", True, "Hi"),
        ("two\nlines", True, "two\nlines"),
        ('"""', False, ""),
        ('"""one\ntwo', False, "one\ntwo"),
        ('"""one\ntwo"""', True, "one\ntwo"),
        ('"""\none\ntwo\n"""  ', True, "one\ntwo"),
        ('/system """Be\nkind."""', True, "/system Be\nkind."),
        ('/system """Be', False, "/system Be"),
        ('def f():\n    """A docstring of pasted code', True, 'def f():\n    """A docstring of pasted code'),
    ],
)
def test_three_quotes_at_the_beginning_hold_several_lines(text: str, complete: bool, meant: str) -> None:
    assert is_complete(text) == complete
    assert unquoted(text) == meant
