"""The page in a real browser: nothing is wider than the window, and it is dark where one wants it dark."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.simulations.report.synthetic import Synthetic, facts

from fedprofile.simulations.report import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

FRAME = """<!DOCTYPE html><body><iframe src="report.html" width="{width}" height="800" style="border:0"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", event => {{
  const page = event.target.contentDocument, root = page.documentElement, window_ = event.target.contentWindow;
  const wide = [...page.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll, svg, .skip") && one.getBoundingClientRect().right > root.clientWidth + 0.5);
  const smallest = Math.min(...[...page.querySelectorAll("svg text")].map(text => {{
    const shown = text.getScreenCTM();
    return parseFloat(window_.getComputedStyle(text).fontSize) * Math.hypot(shown.a, shown.b);
  }}));
  document.title = [root.clientWidth, root.scrollWidth, wide.length, smallest.toFixed(1),
    window_.getComputedStyle(page.body).backgroundColor].join(";");
}});
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The report's folder, and where it is served: a page may look into another of the same origin only."""
    folder = tmp_path_factory.mktemp("site")
    name = "a-group-with-a-name-that-has-no-place-to-be-broken-and-is-long"
    write_report(folder, Synthetic(name).table(), facts(name, real_data=True))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _browse(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder / 'profile'}", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def _looked_at(site: tuple[Path, str], width: int, *arguments: str) -> list[str]:
    folder, address = site
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    options = ("--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom", f"{address}/frame.html")
    found = re.search(r"<title>([^<]+)</title>", _browse(folder, *arguments, *options))
    assert found is not None
    return found[1].split(";")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(site: tuple[Path, str], width: int) -> None:
    client, scroll, wide, smallest, _ = _looked_at(site, width)
    assert width - 20 <= int(client) <= width
    assert int(scroll) == int(client) and wide == "0"
    assert float(smallest) >= 9.5, "text in figures is too small to read"


def test_dark_where_one_wants_it_dark(site: tuple[Path, str]) -> None:
    assert _looked_at(site, 360)[4] == "rgb(255, 255, 255)"
    assert _looked_at(site, 360, "--blink-settings=preferredColorScheme=0")[4] == "rgb(20, 23, 26)"


def test_print_shows_what_is_folded_on_the_screen(site: tuple[Path, str]) -> None:
    folder, address = site
    if (reader := shutil.which("pdftotext")) is None:
        pytest.skip("there is no pdftotext")
    _browse(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'report.pdf'}", f"{address}/report.html")
    printed = subprocess.run([reader, folder / "report.pdf", "-"], capture_output=True, text=True, check=True).stdout
    # The caption of a table that is folded.
    assert "AUC of each tenant, with 95 % intervals" in printed
