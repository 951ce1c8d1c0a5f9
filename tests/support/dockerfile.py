"""What a Dockerfile says: its stages and their instructions."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PATH = Path(__file__).parents[2] / "deploy" / "docker" / "Dockerfile"


@dataclass
class Stage:
    """One ``FROM ... AS name`` and what follows; ``base`` is an image or an earlier stage."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]


def stages(path: Path = PATH) -> dict[str, Stage]:
    """The stages by name, in their order."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    given: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, re.sub(r"\$\{(\w+)\}", lambda arg: given[arg[1]], base))
        elif not found:
            assert instruction == "ARG", line
            name, _, value = rest.partition("=")
            given[name] = value
        else:
            next(reversed(found.values())).instructions.append((instruction, rest.strip()))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage and those that it is built on, the lowest first."""
    known = stages()
    found = [known[name]]
    while found[0].base in known:
        found.insert(0, known[found[0].base])
    return found


def environment(name: str) -> dict[str, str]:
    """What ENV sets in an image; references to other variables stay as they are."""
    texts = [text for stage in lineage(name) for text in stage.all("ENV")]
    return dict(entry.split("=", 1) for text in texts for entry in shlex.split(text))


def command(name: str, instruction: str) -> list[str]:
    """ENTRYPOINT, CMD or HEALTHCHECK of an image, in the form of a list."""
    text = [text for stage in lineage(name) for text in stage.all(instruction)][-1]
    words: list[str] = json.loads(text[text.index("[") :])
    return words
