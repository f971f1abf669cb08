"""Every file that the documents name exists, and every plot shows its data."""

import re
from pathlib import Path

import pytest

from docs.plots import plot
from docs.sizing import tables

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "examples/*.md", "training/*.md") for path in ROOT.glob(pattern)
)
PACKAGE_DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_to_files(page: Path) -> None:
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    paths = re.findall(r"`((?:phi3_serve|training|tests|docs|examples|k8s)/[\w./-]+)`", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_tables_of_sizes_are_those_of_the_catalogue() -> None:
    assert tables() in (ROOT / "docs" / "sizing.md").read_text()


def test_the_architecture_names_every_package_and_module() -> None:
    names = {
        f"phi3_serve/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "phi3_serve").iterdir()
        if path.name not in ("__init__.py", "__main__.py") and (path.suffix == ".py" or any(path.rglob("*.py")))
    }
    assert names <= set(re.findall(r"`([\w./-]+)`", PACKAGE_DOCUMENT))


@pytest.mark.parametrize("data", sorted((ROOT / "docs" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_a_plot_shows_its_data(data: Path) -> None:
    assert (ROOT / "docs" / "images" / f"{data.stem}.svg").read_text() == plot(data.stem)


def test_every_plot_is_on_the_page_of_benchmarks() -> None:
    images = {path.name for path in (ROOT / "docs" / "images").glob("*.svg")}
    assert images == {f"{path.stem}.svg" for path in (ROOT / "docs" / "data").glob("*.json")}
    assert images <= set(re.findall(r"\]\(images/([\w.]+)\)", (ROOT / "docs" / "benchmarks.md").read_text()))
