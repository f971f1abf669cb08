"""The files of others are those that ``make vendor`` wrote, and nothing else. The wheel has all files of the page."""

import tomllib
from pathlib import Path

import pytest

from phi3_serve.web.page import chat_page
from tests.web.vendor import OF_PAGE, OF_TESTS, PACKAGES, ROOT, SUMS, sums


@pytest.mark.parametrize("folder", [OF_PAGE, OF_TESTS])
def test_the_checksums_are_those_of_the_recipe(folder: Path) -> None:
    lines = (folder / SUMS).read_text().splitlines()
    written = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums(folder) == written
    assert set(written) == {name for p in PACKAGES if p.folder == folder for name in p.files.values()}


def test_each_package_brings_its_licence() -> None:
    assert all(any(name.endswith(".LICENSE") for name in package.files.values()) for package in PACKAGES)


def test_the_wheel_has_every_file_of_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["phi3_serve"]
    packaged = {path for pattern in patterns for path in (ROOT / "phi3_serve").glob(pattern) if path.is_file()}
    web = ROOT / "phi3_serve" / "web"
    assert packaged >= {web / name for name in ("page.html", *chat_page().files)}
    assert packaged >= {
        web / "vendor" / name for package in PACKAGES if package.folder == OF_PAGE for name in package.files.values()
    }
