"""A Dockerfile as stages of instructions. It reads what ours has and refuses the rest."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "WORKDIR"}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of the text: of a JSON list its items, otherwise as a shell splits them."""
        items: list[str] = json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return items


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage; ``base`` is the name of another stage or of an image."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


def stages_of(path: Path) -> dict[str, Stage]:
    """The stages of the Dockerfile at ``path`` by name, in their order.

    Raises:
        ValueError: an instruction is not one that this module knows.
    """
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in _logical_lines(path.read_text()):
        name, _, text = line.partition(" ")
        if name not in KNOWN:
            raise ValueError(f"{path}: {name} is not carried out here")
        if name == "FROM":
            base, *rest = text.split()
            stage = Stage(rest[1] if rest else f"stage-{len(stages)}", base)
            stages[stage.name] = stage
        elif stage is not None:
            stage.instructions.append(Instruction(name, text.strip()))
    return stages


def _logical_lines(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
