"""What is to be in a directory: the files of a variant or of an adapter at one commit."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from phi3_serve.catalogue import DOWNLOADED, VARIANTS, variant
from phi3_serve.engine.adapters import reader
from phi3_serve.errors import Phi3ServeError, did_you_mean

ADAPTERS = "adapters"  # the directory of the directories of adapters
_ADAPTER = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([0-9a-f]{40})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be in a directory: some files of a repository at a commit."""

    name: str  # the path of the directory
    source: str  # Hub repository id
    revision: str  # a commit, so that the files cannot change
    patterns: Sequence[str]  # of paths in the repository
    required: Sequence[str] = ()  # paths


def variants_named(names: Iterable[str]) -> list[Wanted]:
    """The weights of the catalogue's entries of ``names``.

    Raises:
        Phi3ServeError: a name is not in the catalogue, or its weights are part of the package.
    """
    found = []
    for name in names:
        if (one := variant(name)) is None:
            known = [entry.name for entry in VARIANTS]
            hint = did_you_mean(name, known, f"; it must be one of {', '.join(known)}")
            raise Phi3ServeError(f"MODEL: `{name}` is not in the catalogue{hint}")
        if one.revision is None:
            raise Phi3ServeError(f"MODEL: {one.name} is part of the package; there is nothing to download")
        found.append(Wanted(one.name, one.source, one.revision, DOWNLOADED))
    return found


def adapters_named(names: Iterable[str]) -> list[Wanted]:
    """Adapters of the Hub, each named as REPOSITORY@COMMIT.

    Raises:
        Phi3ServeError: a name has another form.
    """
    found = []
    for name in names:
        if (parts := _ADAPTER.fullmatch(name)) is None:
            form = "it must be OWNER/REPOSITORY@COMMIT, with the 40 hexadecimal digits of the commit"
            raise Phi3ServeError(f"--adapter: `{name}` names no adapter; {form}")
        source, revision = parts.groups()
        directory = f"{ADAPTERS}/{source.replace('/', '--')}"
        found.append(Wanted(directory, source, revision, reader.FILES, required=reader.FILES))
    return found
