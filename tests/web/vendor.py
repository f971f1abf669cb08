"""What the chat page takes from others: ``make vendor`` writes ``phi3_serve/web/vendor`` and ``tests/web/vendor``.

Each package has a version and the checksum of its archive in the npm registry. ``npm pack`` fetches the archive, and the
files of the page are copied out of it unchanged. They are committed, so a clone needs no npm.
"""

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_PAGE = ROOT / "phi3_serve" / "web" / "vendor"
OF_TESTS = ROOT / "tests" / "web" / "vendor"
SUMS = "SHA256SUMS"
FONTS = tuple(
    f"KaTeX_{name}.woff2"
    for name in (
        *("AMS-Regular", "Caligraphic-Bold", "Caligraphic-Regular", "Fraktur-Bold", "Fraktur-Regular"),
        *("Main-Bold", "Main-BoldItalic", "Main-Italic", "Main-Regular", "Math-BoldItalic", "Math-Italic"),
        *("SansSerif-Bold", "SansSerif-Italic", "SansSerif-Regular", "Script-Regular"),
        *("Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular", "Typewriter-Regular"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package of the npm registry."""

    name: str
    version: str
    sha512: str  # of the archive, in base64, as ``npm view NAME dist.integrity`` shows it
    files: Mapping[str, str]  # path in the archive → path in the folder
    folder: Path = OF_PAGE


PACKAGES = (
    Package(
        name="markdown-it",
        version="15.0.3",
        sha512="+Az7Ojz3iRGu8KYMvJ6xVhvrxP3eE+vEtJX75Ow88XBpcQNV/0lGX5ZynIIBftREo4DC2jsveAMDaeltmm8QvQ==",
        files={"dist/browser/markdown-it.esm.min.mjs": "markdown-it.js", "LICENSE": "markdown-it.LICENSE"},
    ),
    Package(
        name="@mdit/plugin-tex",
        version="0.24.2",
        sha512="nVKIJHQJHvgDByKMpCgFT6gdeEZUyzZby24BjCjxP2N10bkgK8IEwZIBu7G5n5WBw2D0kmFD4Top+YA2mjeiQQ==",
        files={"dist/index.js": "mdit-plugin-tex.js", "LICENSE": "mdit-plugin-tex.LICENSE"},
    ),
    Package(
        name="@mdit/plugin-tasklist",
        version="0.23.2",
        sha512="9vpH3ZG2JmB3SqYfXmRXk9mI5Q6U+KO30quNH1PN5lp5gQtW4kceWhfAPeQtSMemNV4KuCyns+6PRX8zD9Sajw==",
        files={"dist/index.js": "mdit-plugin-tasklist.js", "LICENSE": "mdit-plugin-tasklist.LICENSE"},
    ),
    Package(
        name="dompurify",
        version="3.5.0",
        sha512="LYC0ZkE8P1V42JsRYTwMdme/2ET8SpOc5AA2eOFjP/IadvRd2fwiT4TVz5vkfy0XUx12aS2UaRkTnfVPNOv9vw==",
        files={"dist/purify.es.mjs": "dompurify.js", "LICENSE": "dompurify.LICENSE"},
    ),
    Package(
        name="@highlightjs/cdn-assets",
        version="11.12.0",
        sha512="KvOKXODaiFmId9xaq3xc5xCL66wVLUuOngDbO9B/kewbFTqdGbn2nJxNhN3H5R1cgDTVj6R8vH0zgiNDEGjpDw==",
        files={"es/highlight.min.js": "highlight.js", "LICENSE": "highlight.LICENSE"},
    ),
    Package(
        name="katex",
        version="0.19.1",
        sha512="jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
        files={
            "dist/katex.mjs": "katex.js",
            "dist/katex.min.css": "katex.css",
            "LICENSE": "katex.LICENSE",
            **{f"dist/fonts/{font}": f"fonts/{font}" for font in FONTS},
        },
    ),
    Package(
        name="axe-core",
        version="4.14.1",
        sha512="FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        files={"axe.min.js": "axe.js", "LICENSE": "axe.LICENSE"},
        folder=OF_TESTS,
    ),
)


def main() -> None:
    """Write all files anew, and their checksums."""
    for package in PACKAGES:
        for target, content in _files(package):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for folder in (OF_PAGE, OF_TESTS):
        (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums(folder).items())))


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in ``folder``."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != SUMS]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _files(package: Package) -> Iterator[tuple[Path, bytes]]:
    with tempfile.TemporaryDirectory() as directory:
        archive = _fetched(package, Path(directory))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != package.sha512:
            raise SystemExit(
                f"{package.name} {package.version}: the archive has the SHA-512 {digest}, not the pinned one."
            )
        with tarfile.open(archive) as content:
            for source, target in package.files.items():
                found = content.extractfile(f"package/{source}")
                assert found is not None
                yield package.folder / target, found.read()


def _fetched(package: Package, directory: Path) -> Path:
    command = ["npm", "pack", "--pack-destination", str(directory), f"{package.name}@{package.version}"]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = directory.iterdir()
    return archive


if __name__ == "__main__":
    main()
