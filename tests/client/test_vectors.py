"""Vectors in a column: read from everything, checked by line and column, bounded by the card, and learnt from."""

import json
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedprofile.client.cells import CellError, read_vector
from fedprofile.client.sources import read_examples, read_usable
from fedprofile.client.tables import UNREADABLE
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.feature_specs import FeaturesSpec
from fedprofile.common.features import encode_features
from fedprofile.common.interactions import EncodedRecords, Example, encode
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.cohort import CohortTrainer, TrainingJob
from fedprofile.simulations.randomness import NoNoise, SeededRandomness

WIDTH = 3
FEATURES = {"numeric": [], "categorical": [], "vectors": [{"name": "photo", "width": WIDTH, "low": -2, "high": 2}]}
VECTORS = [[0.5, -1.25, 2.0], None, [1e30, 0, -3]]
SECRET = 1234.5625

MakeModel = Callable[..., ProfileModel]


def _tenant(kind: str, **source: str) -> TenantFile:
    data: dict[str, Any] = {
        "source": {"kind": kind, **source},
        "columns": {"user": "who", "label": "bought"},
        "population": {"name": "p", "declared_users": 10},
        "budget": {"epsilon": 1.0},
        "run": {"epsilon": 1.0},
    }
    return TenantFile.model_validate(data)


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data(features=FEATURES, history={"record": "a visitor", "event": ""}))


def _columns(vectors: list[Any]) -> dict[str, list[Any]]:
    count = len(vectors)
    return {"who": [f"u{place}" for place in range(count)], "bought": ["yes", "no", "yes"][:count], "photo": vectors}


def _texts(vectors: list[Any]) -> list[tuple[str, str, str | None]]:
    columns = _columns([None if vector is None else json.dumps(vector) for vector in vectors])
    return list(zip(*columns.values(), strict=True))


def _write(kind: str, folder: Path, vectors: list[Any]) -> TenantFile:
    """A source with these vectors, as the kind stores them."""
    columns = _columns(vectors)
    if kind == "sql":
        with sqlite3.connect(folder / "data.sqlite") as database:
            database.execute("create table rows (who text, bought text, photo text)")
            database.executemany("insert into rows values (?, ?, ?)", _texts(vectors))
        database.close()
        return _tenant("sql", url="sqlite:///data.sqlite", query="select * from rows")
    path = folder / f"data.{kind}"
    if kind == "parquet":
        types = pyarrow.schema([("who", "string"), ("bought", "string"), ("photo", pyarrow.list_(pyarrow.float64()))])
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=types), path)
    elif kind == "jsonl":
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = (f'{who},{bought},"{photo or ""}"\n' for who, bought, photo in _texts(vectors))
        path.write_text("who,bought,photo\n" + "".join(lines))
    return _tenant(kind, path=path.name)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sql"])
def test_every_source_gives_the_same_vectors(kind: str, card: FederationCard, tmp_path: Path) -> None:
    examples = read_examples(_write(kind, tmp_path, VECTORS), card, tmp_path)
    assert [example.row["photo"] for example in examples] == [(0.5, -1.25, 2.0), None, (1e30, 0.0, -3.0)]
    found = encode_features([example.row for example in examples], card.features)
    np.testing.assert_allclose(found, np.array([[0.25, -0.625, 1.0], [0, 0, 0], [1, 0, -1]]))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sql"])
@pytest.mark.parametrize(
    ("wrong", "what"),
    [([SECRET, 1.0], "does not have the card's 3 values"), ([SECRET, 1e39, 0], "not finite as a 32-bit number")],
)
def test_what_is_wrong_is_said_by_line_and_column(
    kind: str, wrong: list[float], what: str, card: FederationCard, tmp_path: Path
) -> None:
    tenant = _write(kind, tmp_path, [[1, 2, 3], wrong, [4, 5, 6]])
    with pytest.raises(DataError) as caught:
        read_examples(tenant, card, tmp_path)
    [problem] = caught.value.problems
    line = 3 if kind == "csv" else 2
    assert (problem.line, problem.column) == (line, "photo") and what in problem.what
    assert "1234" not in str(caught.value)
    # While requests are answered it leaves out that user and nobody else.
    usable = read_usable(tenant, card, tmp_path)
    assert [example.user for example in usable.examples] == ["u0", "u2"] and usable.users_left_out == 1


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, None),
        ("", None),
        (float("nan"), None),
        ("[1, 2.5, -3e2]", (1.0, 2.5, -300.0)),
        ([1, Decimal("2.5"), -300.0], (1.0, 2.5, -300.0)),  # PostgreSQL's numeric[]
        ((1, 2, 3), (1.0, 2.0, 3.0)),
    ],
)
def test_vectors_and_nothing(cell: Any, expected: Any) -> None:
    assert read_vector(cell, width=3) == expected


@pytest.mark.parametrize(
    "cell",
    [
        "1, 2, 3",
        "[1, 2, NaN]",
        "[1, 2, 1e400]",
        "[1, 2, null]",
        '[1, 2, "3"]',
        "[[1, 2, 3]]",
        '{"a": 1}',
        "[" * 50_000,
        "5",
        5.0,
        True,
        b"\0\0\0",
        [1.0, 2.0, None],
        [1.0, 2.0, True],
        [1.0, 2.0, float("inf")],
        [1, 2, 10**400],
        [1, 2, Decimal("sNaN")],
        [],
        [1.0],
        UNREADABLE,
    ],
    ids=range(20),
)
def test_what_is_no_vector_is_refused(cell: Any) -> None:
    with pytest.raises(CellError):
        read_vector(cell, width=3)


FINITE = st.floats(-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))


@given(st.lists(st.lists(FINITE, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4))
def test_the_public_bounds_hold_for_every_vector(vectors: list[list[float]]) -> None:
    rows = [{"photo": tuple(vector)} for vector in vectors]
    clipped = encode_features(rows, FeaturesSpec.model_validate(FEATURES))
    assert np.abs(clipped).max() <= 1
    expected = np.clip(np.array(vectors), -2, 2) / 2
    np.testing.assert_allclose(clipped, expected, atol=1e-6)
    spec = FeaturesSpec.model_validate({"vectors": [{"name": "photo", "width": WIDTH, "norm": 5.0}]})
    shortened = encode_features(rows, spec)
    norms = np.linalg.norm(np.array(vectors), axis=1)
    assert np.linalg.norm(shortened.astype(float), axis=1).max() <= 1 + 1e-6
    np.testing.assert_allclose(np.linalg.norm(shortened.astype(float), axis=1), np.minimum(norms / 5, 1), atol=1e-6)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(encode_features([row], spec)[0], shortened[place])


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ({}, "give either low and high, or norm"),
        ({"low": 0}, "give either low and high, or norm"),
        ({"low": 0, "high": 1, "norm": 1}, "give either low and high, or norm"),
        ({"low": 1, "high": 1}, "low=1 must be below high=1"),
        ({"norm": 0}, "greater than 0"),
        ({"norm": 1, "width": 0}, "greater than or equal to 1"),
    ],
)
def test_a_card_says_how_vectors_are_bounded(
    vector: dict[str, Any], said: str, card_data: Callable[..., dict[str, Any]]
) -> None:
    data = card_data(features={"vectors": [{"name": "photo", "width": 3, **vector}]})
    with pytest.raises(ConfigError, match=said):
        validate(data, FederationCard, "federation.toml")


def test_a_vector_is_no_text(card_data: Callable[..., dict[str, Any]]) -> None:
    data = card_data(features=FEATURES, history={"record": "{photo}"})
    with pytest.raises(ConfigError, match="'photo' holds a vector"):
        validate(data, FederationCard, "federation.toml")


SETTINGS = TrainingSettings(
    sample_rate=0.5,
    noise_multiplier=1.0,
    clip_norm=0.5,
    records_per_user=2,
    declared_users=200,
    optimizer="adam",
    learning_rate=0.01,
    head_learning_rate=0.1,
    momentum=0.0,
    proximal=0.0,
    max_update_norm=1e6,
)


def _examples(count: int, seed: int) -> list[Example]:
    """Everybody has the same text; which side of a plane the vector lies on is the label."""
    rng = np.random.default_rng(seed)
    vectors = rng.uniform(-2, 2, (count, WIDTH))
    labels = (vectors @ np.array([1.0, -2.0, 0.5]) > 0).astype(int)
    return [
        Example(f"u{place}", {"photo": tuple(vector.tolist())}, label=int(label))
        for place, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    ]


@pytest.mark.parametrize("adapter", [{"train": "B"}, {"method": "head"}])
def test_a_label_that_is_only_in_the_vector_is_learnt(
    adapter: dict[str, Any], card: FederationCard, make_model: MakeModel
) -> None:
    """By the deployed trainer and by the cohort, which agree; on users whom training has not seen."""
    model = make_model(adapter=adapter, features=FEATURES, history={"record": "a visitor", "event": ""})
    train, test = (encode(_examples(200, seed), model.card, model.tokenizer) for seed in (1, 2))
    cache, start = PrefixCache(model), model.initial_arrays()
    assert len({tokens.tobytes() for tokens in train.tokens}) == 1
    deployed = PrivateTrainer(model=model, cache=cache, settings=SETTINGS)
    deployed.self_test()
    update = deployed.train(start, train, steps=30, randomness=NoNoise(1, "vectors"))
    job = TrainingJob(SETTINGS, start, train, 30, NoNoise(1, "vectors"))
    [cohort] = CohortTrainer(model, cache).train([job])
    for name, value in update.items():
        np.testing.assert_allclose(cohort[name], value, atol=2e-3)
    model.set_arrays({name: start[name] + update[name] for name in start})
    assert roc_auc_score(test.labels, model.predict(test)[:, 1]) > 0.97
    # Without the vector nothing is left to tell people apart by.
    blind = EncodedRecords(**{**vars(test), "features": np.zeros_like(test.features)})
    assert np.ptp(model.predict(blind)[:, 1]) == 0.0


def test_a_user_with_an_enormous_vector_moves_a_step_by_the_clip_norm_at_most(make_model: MakeModel) -> None:
    """The bound on the input keeps it finite; clipping bounds what it adds, as for anybody."""
    vectors = [{"name": "photo", "width": WIDTH, "norm": 1e-3}]
    model = make_model(features={**FEATURES, "vectors": vectors}, history={"record": "a visitor", "event": ""})
    everyone = _examples(30, seed=3)
    monster = Example("monster", {"photo": (3.0e38, -3.0e38, 3.0e38)}, label=0)
    with_it, without = (encode(people, model.card, model.tokenizer) for people in ([*everyone, monster], everyone))
    assert np.linalg.norm(with_it.features[-1].astype(float)) <= 1 + 1e-6
    rng = np.random.default_rng(0)
    start = {
        name: (value + rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in model.get_arrays().items()
    }
    settings = SETTINGS.plain(30)
    plain = TrainingSettings(**{**vars(settings), "clip_norm": 0.01, "declared_users": 1})
    updates = [
        PrivateTrainer(model=model, cache=PrefixCache(model), settings=plain).train(
            start, records, steps=1, randomness=SeededRandomness(5, "bound")
        )
        for records in (with_it, without)
    ]
    moved = [np.concatenate([value.ravel() for value in update.values()]).astype(float) for update in updates]
    # SGD at learning rate 1 over a denominator of 1: what is released is minus the sum itself, in 32 bits.
    assert 0.0099 < np.linalg.norm(moved[0] - moved[1]) <= 0.01 * (1 + 1e-3)
