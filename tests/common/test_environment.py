"""Flower's telemetry and update check are off before flwr is first imported, whichever floor comes first."""

import subprocess
import sys

import pytest

PROBE = """
import os, sys
os.environ["FLWR_TELEMETRY_ENABLED"] = "1"
os.environ.pop("FLWR_DISABLE_UPDATE_CHECK", None)
seen = {}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("flwr", "transformers") and name not in seen:
            seen[name] = (os.environ.get("FLWR_TELEMETRY_ENABLED"), os.environ.get("FLWR_DISABLE_UPDATE_CHECK"))
sys.meta_path.insert(0, Finder())
import %s
import flwr, transformers
print(seen["flwr"], seen["transformers"], "127.0.0.1" in os.environ["NO_PROXY"], os.environ.get("HF_HUB_OFFLINE"))
"""


@pytest.mark.parametrize(
    "module",
    [
        "fedprofile.common.messages",
        "fedprofile.client.cli",
        "fedprofile.server.cli",
        "fedprofile.simulations.cli",
        "fedprofile.simulations.grid",
    ],
)
def test_the_switches_are_set_before_flower_is_imported(module: str) -> None:
    run = subprocess.run([sys.executable, "-c", PROBE % module], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "('0', '1') ('0', '1') True 1"
