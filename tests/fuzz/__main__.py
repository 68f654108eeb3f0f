"""`make fuzz MINUTES=10`: every target of `tests.fuzz.targets` under atheris, one after the other.

What raises is kept in `runs/fuzz/TARGET/`, and the table of `benchmarks/results/fuzzing.md` is written anew. What was
found and mended stands in `tests/fuzz/test_targets.py`.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "benchmarks" / "results" / "fuzzing.md"
RUN = """
import sys
import atheris
with atheris.instrument_imports(include=["fedprofile", "tomllib", "pydantic.main"]):
    from tests.fuzz.targets import TARGETS
atheris.Setup(sys.argv, TARGETS[sys.argv.pop(1)])
atheris.Fuzz()
"""


def fuzz(target: str, minutes: float, work: Path) -> tuple[int, int, list[Path]]:
    """Run one target.

    Args:
        target: Its name.
        minutes: For how long.
        work: Where its corpus and what it finds are kept.

    Returns:
        Executions, features of the code that were reached, and the inputs that raised.
    """
    from tests.fuzz.targets import seeds

    corpus = work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed{number}").write_bytes(seed)
    before = set(work.glob("*-*"))
    options = [f"-max_total_time={int(60 * minutes)}", "-timeout=30", "-rss_limit_mb=3072", "-max_len=65536"]
    command = [sys.executable, "-c", RUN, target, f"-artifact_prefix={work}/", *options, str(corpus)]
    with (work / "log").open("w") as log:
        subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
    told = (work / "log").read_text(errors="replace")
    counts, reached = re.findall(r"^#(\d+)", told, re.MULTILINE), re.findall(r" ft: (\d+)", told)
    return int(counts[-1]) if counts else 0, int(reached[-1]) if reached else 0, sorted(set(work.glob("*-*")) - before)


def main() -> int:
    """Run the targets.

    Returns:
        1 where something raised.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    given = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    rows = ["| target | minutes | executions | features reached | findings |", "| --- | --- | --- | --- | --- |"]
    found: list[Path] = []
    for target in given.targets or TARGETS:
        runs, reached, raised = fuzz(target, given.minutes, given.work / target)
        found += raised
        rows.append(f"| {target} | {given.minutes:g} | {runs} | {reached} | {len(raised)} |")
        print(rows[-1], *raised, flush=True)
    TABLE.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
