"""Check that the documents say what the code does; part of `make check`.

Every command of both command lines stands in the README and every command that the README shows exists; every test
and every file of tests that `docs/privacy.md` or `docs/data.md` names exists; every relative link leads somewhere; the
README's loader is the shipped one.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRIVACY = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def commands_of(program: str) -> set[str]:
    """The commands that `program --help` lists."""
    path = Path(sys.executable).parent / program
    text = subprocess.run([path, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "120"}).stdout
    _, _, listed = text.partition("Commands")
    return set(re.findall(r"^\W*([a-z]+)\s{2,}", listed, re.MULTILINE))


def problems() -> list[str]:
    """One sentence for each thing that does not match."""
    found = []
    for program in ("flower-server", "flower-client"):
        shown = set(re.findall(rf"{program} ([a-z]+)", README))
        exist = commands_of(program)
        found += [f"README.md shows `{program} {name}`, which does not exist" for name in sorted(shown - exist)]
        found += [f"README.md does not show `{program} {name}`" for name in sorted(exist - shown)]
    for reference in re.findall(r"`(tests/[^`]*)`", PRIVACY + DATA):
        place, named, name = reference.partition("::")
        file = ROOT / place
        if not file.is_file() or (named and f"def {name}(" not in file.read_text(encoding="utf-8")):
            found.append(f"docs/privacy.md or docs/data.md names {reference}, which does not exist")
    for document in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "docs" / "privacy.md",
        ROOT / "docs" / "data.md",
        ROOT / "docs" / "experiments.md",
    ):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            if not (document.parent / target).exists():
                found.append(f"{document.name} links to {target}, which does not exist")
    loader = (ROOT / "common" / "modeling" / "plain_loader.py").read_text(encoding="utf-8").strip()
    if loader not in README:
        found.append("README.md does not show common/modeling/plain_loader.py as it is")
    return found


if __name__ == "__main__":
    for problem in (mismatches := problems()):
        print(problem)
    sys.exit(1 if mismatches else 0)
