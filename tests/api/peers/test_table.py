"""README.md of this folder: each test that it names exists, and nearly every row that applies has one."""

import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
FILES = {
    "## vLLM": HERE / "test_vllm.py",
    "## transformers": HERE / "test_transformers.py",
    "## llama.cpp": HERE / "test_llama_cpp.py",
}


def rows() -> list[tuple[str, str, str]]:
    """The section, the test of the peer and what stands in the last column."""
    found, section = [], ""
    for line in (HERE / "README.md").read_text().splitlines():
        section = line if line.startswith("## ") else section
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and not line.startswith("| test of "):
            assert len(cells) == 3, line
            found.append((section, cells[0], cells[2]))
    return found


def test_each_test_exists() -> None:
    for section, of_peer, here in rows():
        if here.startswith(("none: ", "missing: ")):
            continue
        names = re.findall(r"`(\w+)`", here)
        path = re.match(r"(tests/\S+\.py) ", here)
        text = (ROOT / path[1] if path else FILES[section]).read_text()
        assert names, of_peer
        assert all(f"def {name}(" in text for name in names), (of_peer, here)


def test_nearly_every_assertion_that_applies_is_kept() -> None:
    kinds = Counter(
        here.partition(": ")[0] if here.startswith(("none: ", "missing: ")) else "kept" for _, _, here in rows()
    )
    print(dict(kinds))
    assert kinds["kept"] / (kinds["kept"] + kinds["missing"]) >= 0.95, kinds
