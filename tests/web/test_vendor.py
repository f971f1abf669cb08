"""The files of others are those that ``make vendor`` wrote, and nothing else."""

from pathlib import Path

import pytest

from tests.web.vendor import OF_PAGE, OF_TESTS, PACKAGES, SUMS, sums


@pytest.mark.parametrize("folder", [OF_PAGE, OF_TESTS])
def test_the_checksums_are_those_of_the_recipe(folder: Path) -> None:
    lines = (folder / SUMS).read_text().splitlines()
    written = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums(folder) == written
    assert set(written) == {name for p in PACKAGES if p.folder == folder for name in p.files.values()}


def test_each_package_brings_its_licence() -> None:
    assert all(any(name.endswith(".LICENSE") for name in package.files.values()) for package in PACKAGES)
