"""MovieLens in GroupLens's own formats: small files with a pipe, a tab or two colons, in Latin-1."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.interactions import encode
from fedprofile.common.tasks import MultilabelTask, RankingTask, RegressionTask
from fedprofile.simulations.datasets import load_dataset
from fedprofile.simulations.datasets.movielens import GENRES
from fedprofile.simulations.scenarios import load_scenario
from fedprofile.simulations.tenants import read_tenants

PEOPLE = 60
FILMS = ["Toy Story (1995)", "Cité des enfants perdus, La (1995)", "Heat (1995)", "Léon (1994)", "Fargo (1996)"]
UNSEEN = [f"Film {number} (1990)" for number in range(7)] + ["Fargo (1996)"]
"""In the catalogue, and rated by nobody; the last is there twice by title, with another genre."""
KINDS = [["Animation", "Children's", "Comedy"], ["Adventure", "Sci-Fi"], ["Action", "Crime"], ["Drama"], ["Thriller"]]


def _ratings() -> list[tuple[int, int, int, int]]:
    """Person, film, rating, second; films 3 and 4 in the same second; rating 4 exactly once of 5."""
    return [
        (person, film, 1 + (person + film) % 5, 880_000_000 + 1000 * person + 10 * min(film, 3))
        for person in range(1, PEOPLE + 1)
        for film in range(1, len(FILMS) + 1)
    ]


def write_100k(folder: Path) -> None:
    folder.mkdir()
    ratings = ["\t".join(map(str, rating)) for rating in _ratings()]
    (folder / "u.data").write_bytes("".join(f"{line}\n" for line in [ratings[0], *ratings]).encode("latin-1"))
    items = []
    for number, (title, kinds) in enumerate(zip(FILMS + UNSEEN, KINDS + [["Drama"]] * 8, strict=True), start=1):
        flags = "|".join("1" if genre in kinds else "0" for genre in GENRES)
        items.append(f"{number}|{title}|01-Jan-1995||http://us.imdb.com/M/title-exact?x|{flags}\n")
    (folder / "u.item").write_bytes("".join(items).encode("latin-1"))
    people = []
    for person in range(1, PEOPLE + 1):
        code = "T8H1N" if person % 2 else f"9{person:04d}"
        people.append(f"{person}|{20 + person % 4 * 10}|{'MF'[person % 2]}|{('writer', 'none')[person % 2]}|{code}\n")
    (folder / "u.user").write_bytes("".join(people).encode("latin-1"))


def _write_1m(folder: Path) -> None:
    folder.mkdir()
    ratings = ["::".join(map(str, rating)) for rating in _ratings()]
    (folder / "ratings.dat").write_bytes("".join(f"{line}\n" for line in [ratings[0], *ratings]).encode("latin-1"))
    films = [
        f"{number}::{title}::{'|'.join(kinds)}\n"
        for number, (title, kinds) in enumerate(zip(FILMS + UNSEEN, KINDS + [["Drama"]] * 8, strict=True), start=1)
    ]
    (folder / "movies.dat").write_bytes("".join(films).encode("latin-1"))
    people = []
    for person in range(1, PEOPLE + 1):
        code = "02460" if person % 2 else "98107-2117"
        people.append(f"{person}::{'MF'[person % 2]}::{(1, 18, 25, 56)[person % 4]}::{(20, 10)[person % 2]}::{code}\n")
    (folder / "users.dat").write_bytes("".join(people).encode("latin-1"))


WRITERS = {"movielens-100k": ("ml-100k", write_100k), "movielens-1m": ("ml-1m", _write_1m)}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("nested", [True, False], ids=["folder-of-data-sets", "its-own-folder"])
def test_ratings_become_labelled_rows_with_strictly_earlier_histories(name: str, nested: bool, tmp_path: Path) -> None:
    folder, write = WRITERS[name]
    write(tmp_path / folder)
    scenario = load_scenario(name, tmp_path if nested else tmp_path / folder, 0)
    tenants = read_tenants(scenario, split_seed=0)
    assert [len(tenant.groups) for tenant in tenants] == [30, 30]
    examples = [example for tenant in tenants for example in tenant.examples]
    assert len(examples) == PEOPLE * len(FILMS)
    assert sum(example.label for example in examples) == sum(rating >= 4 for _, _, rating, _ in _ratings())
    of_two = [example for example in examples if example.user == "person-2"]
    assert [str(example.row["title"]) for example in of_two] == FILMS
    # Films 3, 4 and 5 have the same second: none of them is in another one's history.
    assert [[event["title"] for event in example.events] for example in of_two] == [
        [],
        FILMS[:1],
        *([FILMS[:2]] * 3),
    ]
    assert [example.label for example in of_two] == [1, 1, 0, 0, 0]
    assert of_two[2].events[0] == {"title": FILMS[0], "liked": "yes"}
    assert of_two[0].row == {"title": FILMS[0], "genres": "Animation, Children's, Comedy"}


def test_tenants_and_groups_of_100k(tmp_path: Path) -> None:
    write_100k(tmp_path / "ml-100k")
    tenants = list(load_dataset("movielens-100k", tmp_path))
    assert [tenant.name for tenant in tenants] == ["zip-9", "zip-elsewhere"]
    assert tenants[0].columns == ("person", "time", "title", "genres", "gender", "age", "occupation", "liked")
    assert {row[4:7] for row in tenants[0].rows} == {("male", "18-24", "writer"), ("male", "35-44", "writer")}
    assert {row[4:7] for row in tenants[1].rows} == {("female", "25-34", "none"), ("female", "50-55", "none")}
    by_work = list(load_dataset("movielens-100k", tmp_path, {"tenant": "occupation"}))
    assert {tenant.name for tenant in by_work} == {"occupation-writer", "occupation-none"}


def test_tenants_and_groups_of_1m(tmp_path: Path) -> None:
    _write_1m(tmp_path / "ml-1m")
    tenants = {tenant.name: tenant for tenant in load_dataset("movielens-1m", tmp_path)}
    assert set(tenants) == {"zip-0", "zip-9"}
    assert {row[4:7] for row in tenants["zip-0"].rows} == {
        ("female", "18-24", "K-12 student"),
        ("female", ">55", "K-12 student"),
    }
    assert {row[4:7] for row in tenants["zip-9"].rows} == {("male", "<=17", "writer"), ("male", "25-34", "writer")}


@pytest.mark.parametrize("name", WRITERS)
def test_as_a_regression_the_rating_is_the_label_and_earlier_ones_are_history(name: str, tmp_path: Path) -> None:
    folder, write = WRITERS[name]
    write(tmp_path / folder)
    scenario = load_scenario(name, tmp_path, 0, {"task": "regression"})
    assert isinstance(scenario.card.task, RegressionTask)
    examples = [example for tenant in read_tenants(scenario, split_seed=0) for example in tenant.examples]
    found = sorted(1 + 4 * example.label for example in examples if isinstance(example.label, float))
    assert found == sorted(float(rating) for _, _, rating, _ in _ratings())
    last = [example for example in examples if example.user == "person-2"][-1]
    assert last.events[0] == {"title": FILMS[0], "rating": "4"}
    assert "rating" not in last.row and "liked" not in last.row


@pytest.mark.parametrize("name", WRITERS)
def test_as_a_ranking_the_liked_film_is_the_label_and_the_catalogue_is_every_film(name: str, tmp_path: Path) -> None:
    folder, write = WRITERS[name]
    write(tmp_path / folder)
    scenario = load_scenario(name, tmp_path, 0, {"task": "ranking"})
    task = scenario.card.task
    assert isinstance(task, RankingTask) and len(task.candidates) == len(FILMS) + len(UNSEEN)
    assert task.candidates[0] == "Toy Story (1995): Animation, Children's, Comedy"
    examples = [example for tenant in read_tenants(scenario, split_seed=0) for example in tenant.examples]
    assert len(examples) == sum(rating >= 4 for _, _, rating, _ in _ratings())
    of_two = [example for example in examples if example.user == "person-2"]
    assert [task.candidates[int(example.label)].split(":")[0] for example in of_two] == FILMS[:2]
    assert of_two[1].events == ({"title": FILMS[0], "liked": "yes"},)


@pytest.mark.parametrize("name", WRITERS)
def test_as_a_profile_the_genres_of_the_newest_liked_films_are_the_labels(name: str, tmp_path: Path) -> None:
    folder, write = WRITERS[name]
    write(tmp_path / folder)
    scenario = load_scenario(name, tmp_path, 0, {"task": "multilabel", "newest": 4})
    task = scenario.card.task
    assert isinstance(task, MultilabelTask)
    examples = {example.user: example for tenant in read_tenants(scenario, split_seed=0) for example in tenant.examples}
    assert len(examples) == PEOPLE
    # Person 2 likes films 1 and 2; the first is before the newest four, and is all of the history.
    assert task.name_of(examples["person-2"].label) == "Adventure;Sci-Fi"
    assert [event["title"] for event in examples["person-2"].events] == FILMS[:1]
    # Of the newest four person 4 likes the fourth and the fifth.
    assert task.name_of(examples["person-4"].label) == "Drama;Thriller"


def test_only_the_newest_ratings_are_labelled_and_all_are_history(tmp_path: Path) -> None:
    _write_1m(tmp_path / "ml-1m")
    for tenant in load_dataset("movielens-1m", tmp_path, {"newest": 2}):
        assert len(tenant.rows) == 2 * tenant.users
        assert len(tenant.events) == len(FILMS) * tenant.users
        assert {row[2] for row in tenant.rows} == set(FILMS[3:])


@pytest.mark.parametrize("name", WRITERS)
def test_records_are_encoded(name: str, tmp_path: Path, tiny_base: Path) -> None:
    folder, write = WRITERS[name]
    write(tmp_path / folder)
    scenario = load_scenario(name, tmp_path, 0)
    for tenant in read_tenants(scenario, split_seed=0):
        records = encode(tenant.examples, scenario.card, AutoTokenizer.from_pretrained(tiny_base))
        assert len(records.users) == 30 and len(records) == 150
        assert set(records.groups.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"tenant": "age"}, ConfigError, "'tenant'"),
        ({"oldest": 3}, ConfigError, "unknown key 'oldest'"),
        ({}, DataError, "u.item, line 2: has not the 24 fields of MovieLens 100K"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], error: type[Exception], problem: str, tmp_path: Path) -> None:
    write_100k(tmp_path / "ml-100k")
    items = tmp_path / "ml-100k" / "u.item"
    first, _, *others = items.read_bytes().splitlines(keepends=True)
    items.write_bytes(b"".join([first, b"2|Short|line\n", *others]))
    with pytest.raises(error, match=problem):
        load_dataset("movielens-100k", tmp_path, options)
    with pytest.raises(DataError, match=r"'ml-1m/ratings\.dat' is not in it; download MovieLens 1M"):
        load_dataset("movielens-1m", tmp_path)
