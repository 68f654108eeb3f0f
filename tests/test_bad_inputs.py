"""Every key of every file that a person edits, made wrong in turn: one clear sentence, exit code 2, nothing lost.

The number of tests collected here is the number of bad inputs that the README reports.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer

from fedprofile.client.cli import app as client
from fedprofile.client.directory import TenantDirectory, write_model
from fedprofile.client.enrolment import make_key
from fedprofile.common.card import FederationCard
from fedprofile.common.cli import run_command
from fedprofile.common.enrolment import Enrolment, Invite, Promise
from fedprofile.server.certificates import new_authority
from fedprofile.server.cli import app as server
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.setup import make_directory

Data = dict[str, Any]
Place = tuple[str | int, ...]

TENANT: Data = {
    "source": {"kind": "csv", "path": "visits.csv"},
    "events": {"kind": "csv", "path": "visits.csv"},
    "columns": {"user": "visitor", "time": "time", "event_time": "time", "label": "bought", "group": "region",
                "protected": ["postcode"], "rename": {"item": "item"}},
    "population": {"name": "shop", "declared_users": 50, "ledger": "../populations/shop.sqlite",
                   "apart_from": ["clinic"]},
    "budget": {"epsilon": 8.0, "delta": 1e-4},
    "run": {"epsilon": 4.0, "delta": 5e-5, "spare_rounds": 1},
    "privacy": {"clip_norm": 1.0, "sample_rate": 0.5, "records_per_user": 4, "evaluation_users": 0.3},
    "policy": {"kinds": ["train", "evaluate", "deliver"], "max_rounds_a_day": 100, "reply_every": 0.25},
    "base": {"path": "model"},
}  # fmt: skip

CARD: Data = {
    "format": 1,
    "name": "test-federation",
    "task": {"kind": "binary", "labels": ["no", "yes"], "group": {"attribute": "region", "values": ["north", "south"]}},
    "history": {"record": "a visitor in {month}", "event": "{action} {item}", "separator": "; ", "max_events": 8,
                "max_tokens": 32},
    "features": {
        "numeric": [{"name": "visits", "low": 0.0, "high": 10.0, "scale": "log", "unit": 1.0, "knots": [1.0, 3.0]}],
        "categorical": [{"name": "device", "values": ["phone", "desk"]}],
        "crosses": [{"numeric": "visits", "categorical": "device"}],
    },
    "base": {"id": "example/tiny-bert", "revision": "main", "weights_sha256": "a" * 64, "config_sha256": "b" * 64,
             "tokenizer_sha256": "c" * 64},
    "adapter": {"method": "lora", "rank": 2, "alpha": 4.0, "targets": ["query", "value"], "top_layers": 1,
                "train": "AB", "dtype": "float32", "pooling": "mean", "text_scale": 1.0},
    "training": {"rounds": 2, "local_steps": 2, "optimizer": "adam", "learning_rate": 0.01, "head_learning_rate": 0.05,
                 "momentum": 0.0, "proximal": 0.0},
    "aggregation": {"strategy": "fedavg", "learning_rate": 1.0, "momentum": 0.0, "beta_2": 0.99, "tau": 0.001,
                    "weight_cap": 1000},
    "rounds": {"min_tenants": 2, "start_after": 0.0, "timeout": 60.0},
    "evaluation": {"when": "every-round", "patience": 1},
    "max_epsilon": 10.0,
    "max_update_norm": 10.0,
    "initial_adapter": "d" * 64,
}  # fmt: skip


def places(data: Any, prefix: Place = ()) -> Iterator[Place]:
    """Every key, of tables and in lists of tables."""
    for key, value in data.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from places(value[0], (*prefix, key, 0))


def inside(data: Any, place: Place) -> Any:
    """The table that a key stands in."""
    for part in place[:-1]:
        data = data[part]
    return data


def wrong_values(value: Any) -> list[Any]:
    """What a value of this type must not be."""
    if isinstance(value, bool | str):
        return [[1], {"x": 1}, 7.5]
    if isinstance(value, int):
        return ["many", str(value), 1.5, -(10**9), [1]]
    if isinstance(value, float):
        return ["much", str(value), float("nan"), float("inf"), {"x": 1}]
    if isinstance(value, list):
        return ["x", 3, [{"x": 1}]]
    return ["x", 3, [1]]


Case = tuple[str, Place, str, Any]


def cases(document: Data) -> list[Case]:
    """(what is done, where, the key that the error must name, the wrong value)."""
    found: list[Case] = []
    for place in places(document):
        value = inside(document, place)[place[-1]]
        found += [("wrong", place, str(place[-1]), wrong) for wrong in wrong_values(value)]
        found.append(("misspelt", place, str(place[-1]), None))
    return found


def apply(document: Data, case: Case) -> Data:
    """The document with one thing wrong."""
    what, place, _, value = case
    changed = copy.deepcopy(document)
    table = inside(changed, place)
    if what == "wrong":
        table[place[-1]] = value
    else:
        table[f"{place[-1]}x"] = table.pop(place[-1])
    return changed


def name_of(case: Case) -> str:
    what, place, _, value = case
    return f"{'.'.join(map(str, place))}-{what}" + (f"-{json.dumps(value)}" if what == "wrong" else "")


SERVER: Data = {"host": "localhost", "listen": "127.0.0.1", "port": 1, "admin_port": 2, "health_port": 3,
                "max_body_mib": 64, "patience": 20.0, "base": "model"}  # fmt: skip
EXCHANGED = {
    Invite: Invite(tenant="shop", address="localhost:1", ca="x", card="{}", card_hash="a" * 64),
    Enrolment: Enrolment(
        tenant="shop",
        public_key="x",
        card_hash="a" * 64,
        declared_users=50,
        promise=Promise(epsilon=4.0, delta=1e-5),
        signature="x",
    ),
}
HEADER = "visitor,time,month,action,item,visits,device,region,postcode,bought"
GOOD = "u1,2026-01-01,w1,viewed,shoes,3,phone,north,1,no"
BAD_CELLS = [
    *(("time", cell) for cell in ("", "today", "01.02.2026", "2026-13-01", "2026-02-30", "1767225600", "24:00")),
    ("time", "0000-01-01"),
    *(("visits", cell) for cell in ("many", "1,5", "0x10", "nan", "inf", "-inf", "1e999", "--3")),
    *(("bought", cell) for cell in ("", "maybe", "YES", "1", "no no")),
    *(("visitor", cell) for cell in ("", "   ", "\t")),
    *((column, "x" * 100_001) for column in ("month", "item", "visitor")),
]  # fmt: skip
BAD_FILES = {
    "no file": (None, "cannot be read"),
    "a folder": (b"folder", "cannot be read"),
    "nothing": (b"", "there is no row"),
    "a header alone": (f"{HEADER}\n".encode(), "there is no row"),
    "no header": (f"{GOOD}\n".encode(), "missing"),
    "UTF-16": (f"{HEADER}\n{GOOD}\n".encode("utf-16"), "is not UTF-8"),
    "a cell too many": (f"{HEADER}\n{GOOD},9\n".encode(), "line 2: has more or fewer cells"),
    "a cell too few": (f"{HEADER}\nu1,2026-01-01\n".encode(), "line 2: has more or fewer cells"),
    "an open quote": (f'{HEADER}\n"{GOOD}\n'.encode(), "is not valid CSV"),
    "a byte that is no text": (f"{HEADER}\n{GOOD}\n".replace("shoes", "sh\xf6es").encode("latin-1"), "column 'item'"),
    "a zip archive": (b"PK\x03\x04" + bytes(range(256)), ""),
    "semicolons": (f"{HEADER}\n{GOOD}\n".replace(",", ";").encode(), "missing"),
    "twice the same column": (f"{HEADER},item\n{GOOD},x\n".encode(), "column 'item' is there twice"),
    **{
        f"no column {name}": (f"{HEADER}\n{GOOD}\n".replace(name, "other", 1).encode(), name)
        for name in ("visitor", "time", "month", "action", "item", "visits", "device", "region", "bought", "postcode")
    },
}
BAD_OPTIONS = [
    (client, ["check"], "--dir"),
    (client, ["check", "--dri", "x"], "--dri"),
    (client, ["chekc", "--dir", "x"], "chekc"),
    (client, ["join", "absent.invite", "--dir", "x"], "absent.invite"),
    (client, ["budget", "--dir", "x", "--show", "one"], "--show"),
    (client, ["budget", "--dir", "absent"], "absent"),
    (client, ["budget", "--dir", "absent", "--verify", "--write-off"], "at a time"),
    (client, ["predict", "--dir", "absent", "--input", "x.csv"], "absent"),
    (client, ["start", "--dir", "absent"], "absent"),
    (server, ["init", "x", "--port", "0"], "port"),
    (server, ["init", "x", "--port", "many"], "port"),
    (server, ["init", "x", "--base", "absent"], "--base-id"),
    (server, ["init", "x", "--name", "a b"], "name"),
    (server, ["invite", "--dir", "absent"], "TENANT"),
    (server, ["invite", "acme", "--dir", "absent"], "absent"),
    (server, ["enroll", "absent.enroll", "--dir", "absent"], "absent"),
    (server, ["revoke", "acme", "--dir", "absent"], "absent"),
    (server, ["status", "--dir", "absent"], "absent"),
    (server, ["start", "--dir", "absent"], "absent"),
    (server, ["export", "--dir", "absent", "--out", "x"], "absent"),
]

# What a table with free keys holds, and dates or ids that any text may be, has no wrong spelling.
FREE = {("columns", "rename", "item")}
TENANT_CASES = [case for case in cases(TENANT) if not (case[0] == "misspelt" and case[1] in FREE)]
CARD_CASES = cases(CARD)
SERVER_CASES = cases(SERVER)
EXCHANGED_CASES = [(model, case) for model, made in EXCHANGED.items() for case in cases(made.model_dump(mode="json"))]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A command in this process: exit code and standard error."""

    def call(app: typer.Typer, *arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(app, "flower", list(map(str, arguments)))
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def tenant_root(tmp_path_factory: pytest.TempPathFactory, card_data: Callable[..., Data]) -> Path:
    """A directory that has taken its invite."""
    card = FederationCard.model_validate(card_data())
    place = TenantDirectory(tmp_path_factory.mktemp("tenant") / "shop")
    place.create()
    make_key(place.key)
    ca = new_authority("test").certificate_pem().decode()
    invite = Invite(tenant="shop", address="localhost:1", ca=ca, card=card.canonical().decode(), card_hash=card.hash)
    write_model(place.invite, invite)
    header = "visitor,time,month,action,item,visits,device,region,postcode,bought\n"
    (place.root / "visits.csv").write_text(f"{header}u1,2026-01-01,w1,viewed,shoes,3,phone,north,1,no\n")
    return place.root


@pytest.fixture(scope="module")
def server_root(tmp_path_factory: pytest.TempPathFactory) -> ServerDirectory:
    """A server's directory."""
    return make_directory(
        tmp_path_factory.mktemp("server") / "x", host="localhost", listen="127.0.0.1", port=1, admin_port=2,
        health_port=3, name="test",
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_clear(code: int, error: str, names: str) -> None:
    """One sentence that names the key, and the exit code of bad input."""
    assert code == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert names in error, error
    assert "Traceback" not in error and "this is an error of" not in error, error


@pytest.mark.parametrize("case", TENANT_CASES, ids=name_of)
def test_a_wrong_tenant_file(
    case: Case, tenant_root: Path, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tenant_root.parent / "state"))
    (tenant_root / "tenant.toml").write_text(tomli_w.dumps(apply(TENANT, case)))
    before = contents(tenant_root.parent)
    assert_clear(*run(client, "check", "--dir", tenant_root), case[2])
    assert contents(tenant_root.parent) == before


@pytest.mark.parametrize("case", CARD_CASES, ids=name_of)
def test_a_wrong_card(case: Case, server_root: ServerDirectory, run: Callable[..., tuple[int, str]]) -> None:
    server_root.federation.write_text(tomli_w.dumps(apply(CARD, case)))
    before = contents(server_root.root)
    assert_clear(*run(server, "invite", "acme", "--dir", server_root.root), case[2])
    assert contents(server_root.root) == before


@pytest.mark.parametrize("case", SERVER_CASES, ids=name_of)
def test_wrong_server_settings(case: Case, server_root: ServerDirectory, run: Callable[..., tuple[int, str]]) -> None:
    server_root.federation.write_text(tomli_w.dumps(CARD))
    right = server_root.settings_file.read_text()
    server_root.settings_file.write_text(tomli_w.dumps(apply(SERVER, case)))
    before = contents(server_root.root)
    assert_clear(*run(server, "invite", "acme", "--dir", server_root.root), case[2])
    assert contents(server_root.root) == before
    server_root.settings_file.write_text(right)


@pytest.mark.parametrize(
    ("model", "case"), EXCHANGED_CASES, ids=[f"{model.__name__}-{name_of(case)}" for model, case in EXCHANGED_CASES]
)
def test_a_wrong_file_from_the_other_side(
    model: type[Invite | Enrolment],
    case: Case,
    server_root: ServerDirectory,
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "sent"
    file.write_text(json.dumps(apply(EXCHANGED[model].model_dump(mode="json"), case)))
    server_root.federation.write_text(tomli_w.dumps(CARD))
    before = contents(server_root.root)
    if model is Invite:
        assert_clear(*run(client, "join", file, "--dir", tmp_path / "shop"), case[2])
    else:
        assert_clear(*run(server, "enroll", file, "--dir", server_root.root), case[2])
    assert contents(server_root.root) == before and [path.name for path in tmp_path.iterdir()] == ["sent"]


def _check(tenant_root: Path, root: Path, data: bytes | None, run: Callable[..., tuple[int, str]]) -> tuple[int, str]:
    """`check` on a copy of the directory with other data."""
    shutil.copytree(tenant_root, root)
    (root / "tenant.toml").write_text(tomli_w.dumps(TENANT))
    (root / "visits.csv").unlink()
    if data == b"folder":
        (root / "visits.csv").mkdir()
    elif data is not None:
        (root / "visits.csv").write_bytes(data)
    return run(client, "check", "--dir", root)


@pytest.mark.parametrize(("column", "cell"), BAD_CELLS)
def test_a_wrong_cell(
    column: str, cell: str, tenant_root: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    cells = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | {column: f'"{cell}"'}
    data = f"{HEADER}\n{GOOD}\n{','.join(cells.values())}\n"
    code, error = _check(tenant_root, tmp_path / "shop", data.encode(), run)
    assert code == 2 and f"line 3, column '{column}'" in error, error
    assert len(cell.strip()) < 3 or cell not in error.replace("line 3", ""), "the cell is shown"
    assert "Traceback" not in error and "this is an error of" not in error


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_wrong_file_of_data(
    what: str, tenant_root: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    data, names = BAD_FILES[what]
    code, error = _check(tenant_root, tmp_path / "shop", data, run)
    assert code == 2 and names in error, error
    assert "Traceback" not in error and "this is an error of" not in error and "shoes" not in error


@pytest.mark.parametrize(("app", "arguments", "names"), BAD_OPTIONS, ids=[" ".join(each[1]) for each in BAD_OPTIONS])
def test_a_wrong_command(
    app: typer.Typer,
    arguments: list[str],
    names: str,
    tmp_path: Path,
    run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_clear(*run(app, *arguments), names)
    assert list(tmp_path.iterdir()) == []


def test_both_documents_are_right_before_they_are_made_wrong(
    tenant_root: Path, server_root: ServerDirectory, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    root = tmp_path / "shop"
    shutil.copytree(tenant_root, root)
    (root / "tenant.toml").write_text(tomli_w.dumps(TENANT))
    # The one thing that is missing is the base model's folder.
    code, error = run(client, "check", "--dir", root)
    assert code == 2 and "model" in error and "tenant.toml" not in error, error
    server_root.federation.write_text(tomli_w.dumps(CARD))
    assert run(server, "invite", "acme", "--dir", server_root.root, "--out", tmp_path / "acme.invite")[0] == 0
