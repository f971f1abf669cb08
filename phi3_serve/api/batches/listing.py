"""Lists of files and of batches, a part at a time."""

from typing import Annotated, Any

from fastapi import Query

from phi3_serve.batch.object_id import IdKind, Page
from phi3_serve.errors import InvalidRequest

After = Annotated[str | None, Query(description="The id behind which the list goes on")]


def check_cursor(kind: IdKind, after: str | None) -> None:
    """Raise InvalidRequest if ``after`` is no id of a list of this ``kind``."""
    if after is not None and not kind.matches(after):
        raise InvalidRequest(f"`after` must be an id of this list, which begins with {kind.prefix}.", "after")


def ends(shown: Page) -> dict[str, Any]:
    """The fields of a part of a list beside its objects."""
    first, last = (shown.ids[0], shown.ids[-1]) if shown.ids else (None, None)
    return {"first_id": first, "last_id": last, "has_more": shown.has_more}
