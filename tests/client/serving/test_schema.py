"""schemathesis: whatever the OpenAPI schema allows and forbids, the server answers as the schema says.

What a schema cannot say may be refused although it fits: that an event is of the row's user, that the times of one
user all have a zone or none, that a tensor holds as many elements as its shape says. Hence 400 and 422 below.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.client.serving.conftest import Serve, Served

SETTINGS = """
[phases.examples]
enabled = false
[phases.stateful]
enabled = false
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 422]
"""


@pytest.fixture(scope="module")
def served(serve: Serve, directories: Path) -> Served:
    """Both federations."""
    return serve(directories / "buy", directories / "spend")


def test_the_server_is_what_its_schema_says(served: Served, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    program = Path(sys.executable).parent / "schemathesis"
    command = [str(program), "--config-file", "settings.toml", "run", f"{served.http}/openapi.json"]
    command += [
        "--header",
        f"Authorization: Bearer {served.token}",
        "--max-examples",
        "15",
        "--seed",
        "0",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
