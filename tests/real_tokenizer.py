"""The real tokenizer of Phi-3, as a checkpoint has it, with any chat template."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

DATA = Path(__file__).parent / "data"
TOKENIZERS = DATA / "tokenizers"


def write(directory: Path, template: str | list[dict[str, str]] | None) -> Path:
    """Write the files of Phi-3-mini with ``template`` as their chat template."""
    shutil.copy(TOKENIZERS / "phi-3-mini.tokenizer.json", directory / "tokenizer.json")
    config = json.loads((TOKENIZERS / "phi-3-mini.tokenizer_config.json").read_text())
    del config["chat_template"]
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text('{"model_type": "phi3"}')  # AutoTokenizer takes another class without it
    return directory


def load() -> Any:
    """The tokenizer of Phi-3-mini."""
    with tempfile.TemporaryDirectory() as directory:
        return AutoTokenizer.from_pretrained(write(Path(directory), template_of("phi-3-mini")))


def template_of(name: str) -> str:
    """A chat template of ``data``."""
    if (path := DATA / "templates" / f"{name}.jinja").exists():
        return path.read_text()
    return str(json.loads((TOKENIZERS / f"{name}.tokenizer_config.json").read_text())["chat_template"])
