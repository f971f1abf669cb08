"""OpenAI's stop strings: however a text is cut into pieces, the same text comes out."""

from hypothesis import given
from hypothesis import strategies as st

from phi3_serve.text.stop import StopText


def expected(text: str, stops: list[str]) -> str:
    for end in range(len(text) + 1):
        if begins := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(begins)]
    return text


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_pieces_give_what_the_whole_gives(pieces: list[str], stops: list[str]) -> None:
    stream, given_out = StopText(stops), ""
    for piece in pieces:
        given_out += stream.add(piece)
        assert expected("".join(pieces), stops).startswith(given_out)
    assert given_out + stream.finish() == expected("".join(pieces), stops)


def test_a_stop_string_within_another_is_complete_first() -> None:
    for pieces in (["ba", "b"], ["bab"], ["b", "a", "b"]):
        stream = StopText(["a", "bab"])
        assert "".join(map(stream.add, pieces)) == "b"


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    stream = StopText(["END"])
    assert [stream.add(piece) for piece in ("hello E", "N", "Q", "EN", "D more")] == ["hello ", "", "ENQ", "", ""]
    assert stream.finish() == ""
