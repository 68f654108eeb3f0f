"""The page in a real browser: a person opens it, types, asks, and sees.

The browser opens `/drive`, which a small proxy puts beside the served page, so that both are of one origin: it frames
the page, types into it as a person would, and writes down what there is to see.
"""

import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.serving.conftest import Serve, Served

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

DRIVE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe width="{width}" height="{height}" style="border:0"></iframe><pre hidden></pre>
<script>
const frame = document.querySelector("iframe"), told = {{}};
const until = async (what, why) => {{
  for (let tries = 0; tries < 400; tries++) {{
    const found = what();
    if (found) return found;
    await new Promise(after => setTimeout(after, 25));
  }}
  throw new Error(why);
}};
const fill = (input, value) => {{ input.focus(); input.value = value; }};
addEventListener("error", event => {{ told.error = String(event.message); }});
frame.addEventListener("load", async () => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  const part = name => page.getElementById(name);
  const seen = name => !part(name).closest("[hidden]");
  try {{
    {steps}
    const root = page.documentElement;
    told.width = [root.clientWidth, root.scrollWidth];
    told.wide = [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll, .skip, [hidden]")
      && one.getBoundingClientRect().right > root.clientWidth + 0.5).map(one => one.tagName + "#" + one.id);
    told.nameless = [...page.querySelectorAll("input, textarea, button, progress, [role=region]")].filter(one =>
      !one.closest("[hidden]") && !(one.labels && one.labels.length) && !one.getAttribute("aria-label")
      && !(one.tagName === "BUTTON" && one.textContent.trim())).map(one => one.outerHTML);
    told.background = view.getComputedStyle(page.body).backgroundColor;
    told.address = view.location.href;
    told.small = [...page.querySelectorAll("button, input")].filter(one => !one.closest("[hidden]")
      && one.getBoundingClientRect().height < 44).map(one => one.outerHTML);
  }} catch (error) {{ told.error = String(error); }}
  document.querySelector("pre").textContent = JSON.stringify(told);
}}, {{once: true}});
frame.src = "/{fragment}";
</script>"""

ASK = """
    await until(() => seen("ask"), "the form does not come");
    told.focused = page.activeElement.id;
    for (const [name, value] of Object.entries({row})) fill(part("row-" + name), value);
    part("add").click();
    told.lines = part("events").children.length;
    {events}.forEach((event, line) => Object.entries(event).forEach(([name, value]) =>
      fill(part("events").children[line].querySelector(`[data-name="${{name}}"]`), value)));
    page.querySelector("button.main").click();
    await until(() => seen("answer") || seen("problems"), "no answer comes");
    told.status = part("status").textContent;
    told.profile = part("profile").innerText;
    told.models = part("models").innerText;
    told.active = page.activeElement.id;
    told.explain = seen("explain");
"""

ROW = {"device": "phone", "month": "w1", "visits": "4", "time": "2026-02-01"}
EVENTS = [
    {"action": "viewed", "item": "shoes", "time": "2026-01-03"},
    {"action": "bought", "item": "books", "time": "2026-01-05"},
]


class Place:
    """The page's origin, and a browser."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.folder, self.drive = served, folder, ""
        self.client = client = httpx.Client(base_url=served.http, timeout=60, trust_env=False)
        place = self

        class Proxy(http.server.BaseHTTPRequestHandler):
            def _pass(self) -> None:
                if self.path == "/drive":
                    self._answer(200, [("content-type", "text/html; charset=utf-8")], place.drive.encode())
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                kept = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
                found = client.request(self.command, self.path, content=body, headers=kept)
                self._answer(found.status_code, found.headers.multi_items(), found.content)

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "date", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _pass

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def look(self, steps: str, *options: str, width: int = 1000, fragment: str | None = None, height: int = 900) -> Any:
        fragment = f"#token={self.served.token}" if fragment is None else fragment
        self.drive = DRIVE.format(steps=steps, width=width, height=height, fragment=fragment)
        assert CHROMIUM is not None
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-dev-shm-usage", "--no-proxy-server", f"--user-data-dir={self.folder / 'profile'}"]
        window = f"--window-size={max(width, 500)},{height}"
        address = f"http://127.0.0.1:{self.server.server_address[1]}/drive"
        command += [window, "--virtual-time-budget=30000", "--dump-dom", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"<pre[^>]*>([^<]+)</pre>", done.stdout)
        assert found is not None, done.stdout
        told = json.loads(html.unescape(found[1]))
        assert "error" not in told, told
        return told


@pytest.fixture(scope="module")
def place(serve: Serve, directories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Both federations' page."""
    found = Place(serve(directories / "buy", directories / "spend"), tmp_path_factory.mktemp("browser"))
    yield found
    found.server.shutdown()
    found.thread.join()
    found.server.server_close()
    found.client.close()


def _asking(row: dict[str, str] = ROW, events: list[dict[str, str]] = EVENTS) -> str:
    return ASK.format(row=json.dumps(row), events=json.dumps(events))


def test_a_person_sees_the_profile_and_what_stands_behind_it(place: Place) -> None:
    told = place.look(_asking())
    said = place.served.profile({"row": ROW | {"visits": 4}, "events": EVENTS})
    assert told["lines"] == 2 and told["status"] == "The profile is below."
    for label, value in said["buy"]["prediction"]["probabilities"].items():
        assert f"{label}\n" in told["profile"] and f"{100 * value:.1f} %" in told["profile"]
    assert "visits: " in told["profile"] and "in the range of 0 to 10" in told["profile"]
    assert "probability is from 0.4 to 0.6" in told["profile"]
    expected = "Left to a person" if said["buy"]["decision"] == "review" else f"Decided: {said['buy']['decision']}"
    assert expected in told["profile"]
    for fact in ("epsilon at most 2, delta 0.00002, for each user", "1 of 2", "binary: no, yes", said["buy"]["card"]):
        assert fact in told["models"]
    # What the keyboard and a screen reader need: the first field, then the answer, have the focus; all have names.
    assert told["focused"].startswith("row-") and told["active"] == "answer"
    assert told["nameless"] == [] and told["small"] == []
    # The token is gone from the address.
    assert place.served.token not in told["address"] and told["explain"]


def test_what_drove_a_prediction_is_shown_by_event(place: Place) -> None:
    steps = """
    part("explain").click();
    await until(() => part("explanation").querySelector("table"), "no explanation comes");
    told.explanation = part("explanation").innerText;
    """
    told = place.look(_asking() + steps)
    assert "viewed shoes" in told["explanation"] and "bought books" in told["explanation"]
    assert "not causes of what a person did" in told["explanation"] and told["nameless"] == []


def test_a_wrong_cell_is_named_and_has_the_focus(place: Place) -> None:
    told = place.look(
        _asking(ROW, [EVENTS[0], EVENTS[1] | {"time": "yesterday"}])
        + """told.problems = part("problems").innerText;
        told.invalid = [...page.querySelectorAll('[aria-invalid="true"]')].map(one => one.dataset.field);
        told.at = page.activeElement.dataset.field;"""
    )
    assert told["status"] == "The request cannot be read:"
    assert "events[1].time: is not an ISO 8601 date" in told["problems"] and "yesterday" not in told["problems"]
    assert told["invalid"] == ["events[1].time"] == [told["at"]]


def test_a_history_can_be_given_as_json_lines(place: Place) -> None:
    told = place.look(
        _asking()
        + """const first = told.profile;
        part("as-lines").click();
        told.text = part("lines").value;
        page.querySelector("button.main").click();
        await until(() => part("status").textContent === "The profile is below.", "no second answer comes");
        told.same = part("profile").innerText === first;
        const picked = new view.DataTransfer();
        picked.items.add(new view.File([told.text.split("\\n")[0]], "history.jsonl"));
        part("file").files = picked.files;
        part("file").dispatchEvent(new view.Event("change"));
        await until(() => part("lines").value === told.text.split("\\n")[0], "the file is not read");
        part("lines").value = told.text;
        part("as-table").click();
        told.back = part("events").querySelectorAll("input")[1].value;
        part("as-lines").click();
        fill(part("lines"), "{");
        page.querySelector("button.main").click();
        await until(() => seen("problems"), "nothing is said of what is no JSON");
        told.problems = part("problems").innerText;"""
    )
    assert [json.loads(line) for line in told["text"].splitlines()] == EVENTS
    assert told["same"] and told["back"] in EVENTS[0].values()
    assert told["problems"] == "events[0]: is not a JSON object"


def test_without_the_token_nothing_is_shown(place: Place) -> None:
    told = place.look(
        """await until(() => part("token-form"), "no form");
        told.first = [page.activeElement.id, seen("ask"), seen("cards")];
        fill(part("token"), "wrong");
        page.querySelector("#token-form button").click();
        await until(() => part("status").textContent, "nothing is said");
        told.status = part("status").textContent;
        told.then = [page.activeElement.id, seen("ask"), seen("cards")];
        fill(part("token"), TOKEN);
        page.querySelector("#token-form button").click();
        await until(() => seen("ask"), "the form does not come");""".replace("TOKEN", json.dumps(place.served.token)),
        fragment="",
    )
    assert told["first"] == told["then"] == ["token", False, False]
    assert "bearer token" in told["status"]


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1000, True)])
def test_nothing_is_wider_than_the_window_in_light_and_dark(place: Place, width: int, dark: bool) -> None:
    options = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    told = place.look(_asking(), *options, width=width)
    assert told["width"][0] == told["width"][1] <= width and told["wide"] == []
    assert told["background"] == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert told["nameless"] == [] and told["small"] == []
