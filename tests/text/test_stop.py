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


@given(
    st.lists(st.tuples(st.text("ab", max_size=3), st.booleans()), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_a_stop_string_ends_only_where_it_may(
    pieces: list[tuple[str, bool]], stops: list[str], keeps_stop: bool
) -> None:
    """The text up to the last piece that may not stop is one in which nothing ends."""
    may_stop = [any(may for _, may in pieces[:at]) or may for at, (_, may) in enumerate(pieces)]
    pieces = [(text, may) for (text, _), may in zip(pieces, may_stop, strict=True)]
    text, early = "".join(text for text, _ in pieces), "".join(text for text, may in pieces if not may)
    ends = (end for end in range(len(early) + 1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops))
    end = next(ends, None)
    whole = text
    if end is not None:
        start = min(end - len(stop) for stop in stops if text[:end].endswith(stop))
        whole = text[: end if keeps_stop else start]
    stream = StopText(stops, keeps_stop=keeps_stop)
    assert "".join(stream.add(piece, may_stop=may) for piece, may in pieces) + stream.finish() == whole


def test_a_stop_string_within_another_is_complete_first() -> None:
    for pieces in (["ba", "b"], ["bab"], ["b", "a", "b"]):
        stream = StopText(["a", "bab"])
        assert "".join(map(stream.add, pieces)) == "b"


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    stream = StopText(["END"])
    assert [stream.add(piece) for piece in ("hello E", "N", "Q", "EN", "D more")] == ["hello ", "", "ENQ", "", ""]
    assert stream.finish() == ""
