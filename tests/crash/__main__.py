"""`python -m tests.crash --kills 40`: see `tests.crash.harness`. The last line says what was found."""

import argparse
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

# Before numpy and torch are imported: a process with several threads cannot be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
import fedprofile.common.environment  # noqa: F401

# isort: split
from tests.crash.forks import warm_up
from tests.crash.harness import run_federations
from tests.crash.places import make_base
from tests.crash.tally import Tally


def main() -> int:
    """Run the harness.

    Returns:
        0 where as many were killed as were asked for, and nothing was found.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="how many")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop killing after so many")
    parser.add_argument("--log", type=Path, default=Path("runs/crash/kills.jsonl"), help="one JSON line for each kill")
    parser.add_argument("--resume", action="store_true", help="add to what the log holds")
    parser.add_argument("--seed", type=int, help="of what is left to chance; the moments are not reproducible")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the federations there, and keep the last one")
    given = parser.parse_args()
    tally = Tally(given.log, given.resume)
    warm_up()
    work = (given.keep or Path(tempfile.mkdtemp(prefix="crash-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_base(work / "base")
    until = time.monotonic() + 60 * given.minutes
    done = run_federations(work, work / "base", tally, given.kills, until, random.Random(given.seed))
    if given.keep is None and not tally.failed:
        shutil.rmtree(work)
    else:
        print(f"the federations are kept in {work}")
    if done < given.kills:
        print(f"{done} of {given.kills} kills were done in {given.minutes:g} minutes.")
    print("\n".join(tally.lines()), flush=True)
    return int(tally.failed or done < given.kills)


if __name__ == "__main__":
    raise SystemExit(main())
