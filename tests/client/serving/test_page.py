"""The page in a real browser, driven from a page of the same origin: a person types, asks, and sees.

The served page is the product's own; beside it stands `drive.html`, which frames it and types into it.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.serving.conftest import Serve, Served, asked

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def served(serve: Serve, directories: Path) -> Served:
    """Both federations."""
    return serve(directories / "buy", directories / "spend")
