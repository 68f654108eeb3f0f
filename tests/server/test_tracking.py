"""Each library's own reader finds the server's history in what was tracked, and nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Message
from tests.tracked import Figures, read_runs

from fedprofile.common.config import load_toml, parse_toml
from fedprofile.common.errors import ConfigError, RefusalCode
from fedprofile.common.evaluation_tables import table_shape
from fedprofile.common.messages import Arrays, Reply, Request, refusal_message, reply_message
from fedprofile.server.directory import ServerSettings
from fedprofile.server.template import server_text
from fedprofile.server.trackers import TrackingSpec, usable

if TYPE_CHECKING:
    from tests.server.conftest import Server

MakeServer = Callable[..., "Server"]
KINDS = ("tensorboard", "mlflow", "wandb")
GROUPS = ["18+", "a b", "a/b", "north", "nobody"]
"""Names that libraries take for paths, refuse, or would mix up."""
TASK = {"kind": "binary", "labels": ["no", "yes"], "group": {"attribute": "area", "values": GROUPS}}


def _answer(server: "Server") -> Callable[[Request, Message], Message]:
    def answer(request: Request, message: Message) -> Message:
        arrays: Arrays = {}
        if request.kind.value == "train":
            arrays = {name: np.ones(old.shape, np.float32) for name, old in request.arrays.items()}
        if request.kind.value == "evaluate":
            table = np.arange(table_shape(server.directory.card().task)[0], dtype=np.float64)
            table[4 * 20 : 5 * 20] = 0  # The group of which there are too few.
            arrays = {"table": table + request.round}
        return reply_message(Reply(request.kind, request.card_hash, request.round, arrays), message)

    return answer


def _refusal(request: Request, message: Message) -> Message:
    return refusal_message(RefusalCode.POLICY, message)


def _track(server: "Server", kind: str, **more: str) -> None:
    with server.directory.settings_file.open("a") as file:
        file.write(f'[tracking]\nkind = "{kind}"\n' + "".join(f'{key} = "{value}"\n' for key, value in more.items()))


def _expected(lines: list[dict[str, Any]]) -> Figures:
    """From the history by hand; here nobody is dropped."""
    found: Figures = {}
    for line in lines:
        answered, refused = len(line["tenants"]), len(line["refused"])
        row = {"asked": answered + refused, "answered": answered, "refused": refused, "dropped": len(line["dropped"])}
        row |= {name: line[name] for name in ("seconds", "bytes_up", "bytes_down")}
        for name, metric in line["metrics"].items():
            row |= {f"{name}/{part}": number for part, number in (metric or {}).items()}
        for name, number in row.items():
            found.setdefault((f"{line['kind']}/{name}", line["round"]), []).append(number)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_tracked_run_holds_the_history_and_nothing_else(kind: str, make_server: MakeServer) -> None:
    server = make_server(
        task=TASK, evaluation={"when": "start-middle-end"}, training={"rounds": 2}, rounds={"min_tenants": 3}
    )
    _track(server, kind)
    for name, answer in {"one": _answer(server), "two": _answer(server), "three": _refusal}.items():
        server.enrol(name, answer, users=1000)
    server.start()
    for tenant in server.tenants:
        tenant.start()
    server.finish()
    lines = server.history()
    assert any(metric is None for line in lines for metric in line["metrics"].values())
    assert lines[0]["metrics"]["accuracy:a b"] != lines[0]["metrics"]["accuracy:a/b"]
    # A start after the end is a run of its own that holds the rounds of before, and offers the adapter once more.
    server.start()
    server.finish()

    runs = read_runs(kind, server.directory.root / "tracking")
    assert [run.name for run in runs] == (["run", "run-2"] if kind == "tensorboard" else ["run", "run"])
    promise = "epsilon=3 (delta=1e-06, unit=user, adjacency=add-or-remove-one, model=local, accountant=prv)"
    card = server.directory.card()
    notes = {"federation": "test", "card": card.hash, "base": "example/none", "rounds": "2"}
    for run, its in zip(runs, (lines, server.history()), strict=True):
        expected = _expected(its)
        if kind == "mlflow":
            for group, name in {"18+": "18 2b ", "a b": "a 20 b", "a/b": "a 2f b"}.items():
                expected = {
                    (key.replace(f":{group}/", f":{name}/"), at): found for (key, at), found in expected.items()
                }
        assert run.notes == notes | {f"promise/{name}": promise for name in ("one", "two", "three")}
        assert run.figures.keys() == expected.keys()
        for figure, values in expected.items():
            # TensorBoard keeps single precision.
            assert sorted(run.figures[figure]) == pytest.approx(sorted(values), rel=1e-6), figure


def test_a_tracker_that_fails_does_not_end_the_run(make_server: MakeServer) -> None:
    server = make_server(training={"rounds": 3}, rounds={"min_tenants": 1})
    _track(server, "mlflow", folder="figures")

    def breaks(request: Request, message: Message) -> Message:
        if request.round == 2:
            shutil.rmtree(server.directory.root / "figures", ignore_errors=True)
        return _answer(server)(request, message)

    server.enrol("one", breaks, users=1000).start_later()
    server.start()
    assert server.finish().rounds == 3
    [said] = [line for line in server.lines if line.startswith("tracking has stopped")]
    assert said.endswith("the run goes on without it.")
    assert [line["round"] for line in server.history()] == [1, 2, 3, 3]


def test_nothing_is_written_where_nothing_is_asked_for(make_server: MakeServer) -> None:
    server = make_server(training={"rounds": 1}, rounds={"min_tenants": 1})
    _track(server, "none")
    server.enrol("one", _answer(server), users=1000).start_later()
    server.start()
    server.finish()
    assert not (server.directory.root / "tracking").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(make_server: MakeServer) -> None:
    server = make_server()
    _track(server, "tensorboard", folder="server.toml/within")
    with pytest.raises(ConfigError, match=r"tracking\.folder='.*server.toml/within': cannot be made"):
        server.start().finish()


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorboard", "mlflow", "wandb"):
            raise ModuleNotFoundError(name)
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("tensorboard", "mlflow", "wandb") else find(name)
sys.meta_path.insert(0, Hidden())
from fedprofile.server.cli import main
main()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_library_that_was_asked_for_and_is_not_there_is_named(kind: str, make_server: MakeServer) -> None:
    server = make_server()
    server.enrol("one", _answer(server))
    _track(server, kind)
    ran = subprocess.run(
        [sys.executable, "-c", HIDE, "start", "--dir", str(server.directory.root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert f"pip install 'fedprofile[{kind}]'" in ran.stderr and ran.stderr.count("\n") == 1


def test_a_default_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    # What W&B leaves where it ran is a folder, which Python would take for a package.
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    said: list[str] = []
    assert usable(TrackingSpec(), said.append).kind == "none"
    assert len(said) == 1 and "pip install 'fedprofile[tensorboard]'" in said[0]
    with pytest.raises(ConfigError, match=r"tracking\.kind='wandb' is not installed"):
        usable(TrackingSpec(kind="wandb"), said.append)
    assert usable(TrackingSpec(kind="none"), said.append).kind == "none" and len(said) == 1


def test_the_file_of_init_shows_the_section(tmp_path: Path) -> None:
    text = server_text(host="localhost", listen="127.0.0.1", port=1, admin_port=2, health_port=3)
    shown = text.replace("# [tracking]", "[tracking]").replace("# kind", "kind").replace("# folder", "folder")
    assert parse_toml(text, ServerSettings, "server.toml").tracking == TrackingSpec()
    assert "kind" in parse_toml(shown, ServerSettings, "server.toml").tracking.model_fields_set
    (tmp_path / "server.toml").write_text(text + '[tracking]\nkind = "comet"\n')
    with pytest.raises(ConfigError, match=r"tracking\.kind"):
        load_toml(tmp_path / "server.toml", ServerSettings)
    assert os.environ["WANDB_MODE"] == "offline"
