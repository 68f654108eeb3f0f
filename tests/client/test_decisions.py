"""What is written down of predictions: the decision log, and the table of what is left to a person."""

import json
import os
import resource
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.test_commands import TENANT, Home, card, home, joined_folder, visits  # noqa: F401

from fedprofile.client.agreement import read_agreed
from fedprofile.client.decisions import DecisionLog
from fedprofile.client.received import AdapterFolder
from fedprofile.client.review_table import COLUMNS, add_reviews
from fedprofile.client.site import load_model
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import TableSpec

if TYPE_CHECKING:
    from tests.client.postgresql import PostgreSQL

MODEL: dict[str, Any] = {"card_hash": "c" * 64, "adapter": "a" * 64, "round": 3}
ROW = {
    "card": "c" * 64,
    "adapter": "a" * 64,
    "round": 3,
    "user": "ann",
    "likeliest": "yes",
    "probability": 0.55,
    "because": "viewed shoes (+0.100)",
    "history": "viewed 'shoes'; bought; 第二",
}


@pytest.fixture
def there(home: Home) -> Home:  # noqa: F811
    """A tenant with an adapter that says something."""
    home.joined()
    agreed, _ = read_agreed(home.place)
    model, _ = load_model(agreed, home.place.read_tenant_file(), home.root)
    draw = np.random.default_rng(0)
    arrays = {
        name: (array + draw.normal(0, 0.3, array.shape)).astype(np.float32)
        for name, array in model.get_arrays().items()
    }
    AdapterFolder(home.place, agreed.hash).keep(arrays, 2)
    return home


def _set(home: Home, text: str) -> None:  # noqa: F811
    home.place.tenant_file.write_text(TENANT.format(base=home.base) + text)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_prediction_is_a_line_that_names_nobody(there: Home) -> None:
    _set(there, '\n[judgement]\nband = [0.45, 0.55]\n\n[decisions]\nlog = "decisions.jsonl"\n')
    rows = there.root / "visits.csv"
    code, out, said = there.run("predict", "--dir", str(there.root), "--input", str(rows), "--json")
    assert code == 0, said
    predicted, log = json.loads(out), there.root / "decisions.jsonl"
    lines = _lines(log)
    assert [line["outcome"] for line in lines] == [row["decision"] for row in predicted]
    assert log.stat().st_mode & 0o077 == 0
    version = AdapterFolder(there.place, there.card.hash).require()
    assert {(line["round"], line["adapter"], line["card"], line["way"]) for line in lines} == {
        (2, version.arrays_hash, there.card.hash, "predict")
    }
    text = log.read_text()
    assert "shoes" not in text and "viewed" not in text and '"u1"' not in text
    # The tenant finds one person's decisions, and the same person has the same code the next time.
    found = DecisionLog.of(there.place, there.place.read_tenant_file())
    assert found is not None
    mine = [line for line in lines if line["user"] == found.user_code("u1")]
    assert len(mine) == 3 and len({line["user"] for line in lines}) == 40
    there.run("predict", "--dir", str(there.root), "--input", str(rows), "--json")
    assert len(_lines(log)) == 2 * len(lines) and log.read_text().startswith(text)


def test_an_explanation_is_a_line_too(there: Home) -> None:
    _set(there, '\n[decisions]\nlog = "decisions.jsonl"\n')
    options = ("--dir", str(there.root), "--input", str(there.root / "visits.csv"), "--user", "u1")
    code, _, said = there.run("explain", *options)
    assert code == 0, said
    lines = _lines(there.root / "decisions.jsonl")
    assert [(line["way"], line["outcome"]) for line in lines] == [("explain", "yes")] * 3
    _set(there, '\n[decisions]\nlog = "nowhere/decisions.jsonl"\n')
    code, out, said = there.run("explain", *options)
    assert code == 2 and out == "" and "not logged" in said


def test_a_log_is_its_owners_alone_and_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    path.chmod(0o644)
    DecisionLog(path, b"k" * 32).append(["ann"], ["yes"], **MODEL)
    assert path.stat().st_mode & 0o777 == 0o600
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no plain file"):
        DecisionLog(tmp_path / "pipe", b"k" * 32).append(["ann"], ["yes"], **MODEL)


def test_the_code_hangs_on_the_directorys_secret(tmp_path: Path) -> None:
    codes = {DecisionLog(tmp_path / "log", bytes([key]) * 32).user_code("ann") for key in range(3)}
    assert len(codes) == 3 and all(len(code) == 32 for code in codes)
    assert DecisionLog(tmp_path / "log", b"k" * 32).user_code("\ud800")


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log", b"k" * 32)
    log.append(["ann"], ["yes"], **MODEL)
    with (tmp_path / "log").open("a") as file:
        file.write('{"time": "2026-')
    log.append(["bob", "cid"], ["no", "review"], **MODEL)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 4 and [json.loads(line)["outcome"] for line in (lines[0], *lines[2:])] == [
        "yes",
        "no",
        "review",
    ]


def test_nothing_is_predicted_that_cannot_be_logged(there: Home) -> None:
    _set(there, '\n[decisions]\nlog = "nowhere/decisions.jsonl"\n')
    rows = str(there.root / "visits.csv")
    code, out, said = there.run("predict", "--dir", str(there.root), "--input", rows)
    assert code == 2 and out == "" and "nothing is predicted that is not logged" in said
    _set(there, '\n[decisions]\nlog = "key"\n')
    code, out, said = there.run("predict", "--dir", str(there.root), "--input", rows)
    assert code == 2 and out == "" and "decisions.log" in said and "is a file of the tenant's directory" in said


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log", b"k" * 32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(ConfigError, match="cannot be written"):
            log.append(["ann"] * 5, ["yes"] * 5, **MODEL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_what_is_left_to_a_person_is_added_to_a_table_with_its_reasons(there: Home) -> None:
    _set(
        there, '\n[judgement]\nconfidence = 0.999\n\n[judgement.review]\nurl = "sqlite:///review.db"\ntable = "todo"\n'
    )
    (there.root / "one.csv").write_text("\n".join(visits(40).splitlines()[:4]) + "\n")
    options = ("--dir", str(there.root), "--input", str(there.root / "one.csv"))
    for count in (3, 6):
        code, _, said = there.run("predict", *options)
        assert code == 0 and "3 of 3 records are left to a person, in table todo" in said
        with sqlite3.connect(there.root / "review.db") as database:
            rows = database.execute(f"SELECT {', '.join(COLUMNS)} FROM todo").fetchall()
        assert len(rows) == count
    assert (there.root / "review.db").stat().st_mode & 0o077 == 0
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows[:3]]
    assert {row["user"] for row in found} == {"u0"} and all(row["history"] for row in found)
    assert [row["probability"] for row in found] == sorted(row["probability"] for row in found)
    assert all(row["because"].endswith(")") for row in found)


def test_a_table_is_in_no_file_of_the_clients_own(there: Home) -> None:
    before = there.ledger.read_bytes()
    for name in (str(there.ledger), "key"):
        _set(there, f'\n[judgement.review]\nurl = "sqlite:///{name}"\ntable = "todo"\n')
        code, out, said = there.run("predict", "--dir", str(there.root), "--input", str(there.root / "visits.csv"))
        assert code == 2 and out == "" and "judgement.review" in said
    assert there.ledger.read_bytes() == before


def test_thresholds_without_a_column_of_groups_are_refused(there: Home) -> None:
    _set(there, "\n[judgement.thresholds]\nnorth = 0.4\n")
    text = there.place.tenant_file.read_text()
    options = ("predict", "--dir", str(there.root), "--input", str(there.root / "visits.csv"))
    assert there.run(*options)[0] == 0
    there.place.tenant_file.write_text(text.replace('group = "region"', ""))
    code, out, said = there.run(*options)
    assert code == 2 and out == "" and "columns.group names no column" in said


def test_a_real_postgresql_takes_rows_and_says_nothing_of_them_when_it_refuses(
    postgresql: "PostgreSQL", tmp_path: Path
) -> None:
    spec = TableSpec.model_validate({"url": postgresql.url(), "table": "reviews"})
    add_reviews(spec, tmp_path, [ROW])
    add_reviews(spec, tmp_path, [{**ROW, "user": "bob"}])
    add_reviews(spec, tmp_path, [])
    with postgresql.connect() as connection:
        assert connection.execute('SELECT "user", history FROM reviews ORDER BY added, "user"').fetchall() == [
            ("ann", ROW["history"]),
            ("bob", ROW["history"]),
        ]
        connection.execute("CREATE TABLE other (added text, card text)")
    wrong = spec.model_copy(update={"table": "other"})
    with pytest.raises(ConfigError, match="No row was added") as caught:
        add_reviews(wrong, tmp_path, [ROW])
    assert "bought" not in str(caught.value) and "shoes" not in str(caught.value)
    with postgresql.connect() as connection:
        assert connection.execute("SELECT count(*) FROM other").fetchone() == (0,)


@pytest.mark.parametrize("table", ["a b", 'x"; DROP TABLE y', "", "1a"])
def test_a_tables_name_is_a_name(table: str) -> None:
    with pytest.raises(ValueError, match="table"):
        TableSpec.model_validate({"url": "sqlite:///x.db", "table": table})
