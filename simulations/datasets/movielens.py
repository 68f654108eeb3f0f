"""MovieLens 100K and 1M (Harper and Konstan 2015): does a person like a film, rating it 4 or 5? Or which rating does
a person give, which film is liked next, and which genres are?

A user is one person; a labelled row is one rating, and the history is the person's strictly earlier ratings: many
ratings of one person have the same second, and are in none of one another's histories. Only each person's newest
ratings are labelled rows; all of them are history. One tenant per region of the United States by the first digit of
the postal code (all other codes are one more), or per occupation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field

from fedprofile.common.config import Frozen, validate
from fedprofile.common.errors import DataError
from fedprofile.simulations.datasets.tenant_rows import (
    Adapter,
    TenantRows,
    as_tenants,
    bands,
    find_file,
    tenant_name,
)

LIKED = 4
"""The lowest rating that counts as liking."""

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The flags at the end of a line of `u.item`."""

AGES = (17, 24, 34, 44, 49, 55)
"""Ends of the bands that MovieLens 1M knows only."""

OCCUPATIONS = (
    *("other", "educator", "artist", "clerical", "college student", "customer service", "doctor", "executive"),
    *("farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales", "scientist"),
    *("self-employed", "engineer", "tradesman", "unemployed", "writer"),
)
"""By the numbers of `users.dat`."""

SOURCE_100K = "MovieLens 100K (u.data, u.item and u.user)"
SOURCE_1M = "MovieLens 1M (ratings.dat, movies.dat and users.dat)"
INTEREST = 0.2
"""The share of liked films from which a genre counts as an interest."""
GROUPS = ("gender", "age", "occupation")
RATINGS = ["user", "item", "rating", "at"]
PEOPLE = ["user", "gender", "age", "occupation", "zip"]
LEFT_OUT_100K = {
    "rating": "the label, under another name; with the option `task` the label itself",
    "video release date": "empty in the published file",
    "release date": "the title has the year",
    "IMDb URL": "an address, and mostly dead",
    "zip code": "its first digit is the tenant; with age and gender it could tell who a person is",
}
LEFT_OUT_1M = {"Rating": LEFT_OUT_100K["rating"], "Zip-code": LEFT_OUT_100K["zip code"]}


class Options(Frozen):
    """Of the data set."""

    tenant: Literal["zip", "occupation"] = "zip"
    task: Literal["binary", "regression", "ranking", "multilabel"] = "binary"
    """Whether the rating is 4 or 5, in the column `liked`; the rating from 1 to 5, in the column `rating`; which film
    is liked, in the column `film`, with the liked ones of the newest ratings as labelled rows; or which genres at least
    a fifth of the liked ones of the newest ratings have, in the column `interests`, with one labelled row a person."""
    newest: int = Field(default=20, ge=1)
    """Ratings of each person that are labelled rows, or that those are made of."""


def read_100k(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """MovieLens 100K: `u.data`, `u.item` and `u.user`. Exact duplicate ratings are removed first.

    Args:
        data_dir: The folder that holds `ml-100k/` or the three files themselves.
        options: See `Options`.

    Returns:
        Tenants, largest first.

    Raises:
        ConfigError: An option is not one.
        DataError: A file is not there or not the published one.
    """
    chosen = validate(dict(options), Options, "data.options")
    ratings, items, people = (
        _fields(find_file(data_dir, Path("ml-100k") / name, SOURCE_100K), separator, count, SOURCE_100K)
        for name, separator, count in (("u.data", "\t", 4), ("u.item", "|", 5 + len(GENRES)), ("u.user", "|", 5))
    )
    films = _films_100k(items)
    users = pd.DataFrame(people, columns=["user", "age", "gender", "occupation", "zip"])
    return _tenants(pd.DataFrame(ratings, columns=RATINGS), films, users, chosen)


def read_1m(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """MovieLens 1M: `ratings.dat`, `movies.dat` and `users.dat`. See `read_100k`.

    Args:
        data_dir: The folder that holds `ml-1m/` or the three files themselves.
        options: See `Options`.

    Returns:
        Tenants, largest first.

    Raises:
        ConfigError: An option is not one.
        DataError: A file is not there or not the published one.
    """
    chosen = validate(dict(options), Options, "data.options")
    ratings, items, people = (
        _fields(find_file(data_dir, Path("ml-1m") / name, SOURCE_1M), "::", count, SOURCE_1M)
        for name, count in (("ratings.dat", 4), ("movies.dat", 3), ("users.dat", 5))
    )
    films = _films_1m(items)
    users = pd.DataFrame(people, columns=PEOPLE)
    numbers = {str(number): occupation for number, occupation in enumerate(OCCUPATIONS)}
    users["occupation"] = users["occupation"].map(numbers)
    return _tenants(pd.DataFrame(ratings, columns=RATINGS), films, users, chosen)


def catalogue_100k(data_dir: Path) -> tuple[str, ...]:
    """Every film of MovieLens 100K once, as the column `film` names it."""
    path = find_file(data_dir, Path("ml-100k") / "u.item", SOURCE_100K)
    return _catalogue(_films_100k(_fields(path, "|", 5 + len(GENRES), SOURCE_100K)))


def catalogue_1m(data_dir: Path) -> tuple[str, ...]:
    """Every film of MovieLens 1M once, as the column `film` names it."""
    return _catalogue(
        _films_1m(_fields(find_file(data_dir, Path("ml-1m") / "movies.dat", SOURCE_1M), "::", 3, SOURCE_1M))
    )


def _films_100k(items: list[list[str]]) -> pd.DataFrame:
    genres = [
        ", ".join(genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1") for fields in items
    ]
    return pd.DataFrame(
        {"item": [fields[0] for fields in items], "title": [fields[1] for fields in items], "genres": genres}
    )


def _films_1m(items: list[list[str]]) -> pd.DataFrame:
    films = pd.DataFrame(items, columns=["item", "title", "genres"])
    return films.assign(genres=films["genres"].str.replace("|", ", "))


def _film(table: pd.DataFrame) -> pd.Series:
    """Title and genres as one text, without white space that a reader of cells would take off."""
    return (table["title"] + ": " + table["genres"]).str.strip()


def _catalogue(films: pd.DataFrame) -> tuple[str, ...]:
    # A few films are there twice under one title.
    return tuple(dict.fromkeys(_film(films)))


def _fields(path: Path, separator: str, count: int, source: str) -> list[list[str]]:
    """The fields of every line of a published file, which is Latin-1."""
    with path.open(encoding="latin-1", newline="\n") as file:
        lines = [line.rstrip("\r\n").split(separator) for line in file if line.strip()]
    if wrong := [number for number, fields in enumerate(lines, start=1) if len(fields) != count]:
        raise DataError(f"{path}, line {wrong[0]}: has not the {count} fields of {source}; download it again.")
    return lines


def _tenants(ratings: pd.DataFrame, films: pd.DataFrame, users: pd.DataFrame, chosen: Options) -> list[TenantRows]:
    users = users.assign(
        age=bands(users["age"].astype(int), AGES),
        gender=users["gender"].map({"F": "female", "M": "male"}),
        region=users["zip"].str[:1].where(users["zip"].str[:1].str.isdigit(), "elsewhere"),
    )
    users["tenant"] = users["region" if chosen.tenant == "zip" else "occupation"]
    table = ratings.drop_duplicates().merge(films, on="item").merge(users, on="user")
    table = table.sort_values("at", key=lambda at: at.astype(int), kind="stable", ignore_index=True)
    table["person"] = "person-" + table["user"]
    table["time"] = pd.to_datetime(table["at"].astype(int), unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    table["liked"] = (table["rating"].astype(int) >= LIKED).map({True: "yes", False: "no"})
    newest = table[table.groupby("person").cumcount(ascending=False) < chosen.newest]
    seen = "rating" if chosen.task == "regression" else "liked"
    events = table[["person", "time", "title", "genres", seen, "tenant"]]
    names = {value: f"{chosen.tenant}-{tenant_name(value)}" for value in users["tenant"].unique()}
    if chosen.task == "ranking":
        visits = newest[newest["liked"] == "yes"].assign(film=_film)
        columns: Sequence[str] = ("person", "time", *GROUPS, "film", "tenant")
    elif chosen.task == "multilabel":
        # As of the first of the newest ratings: none of them is in the history.
        visits = newest.drop_duplicates("person").merge(_interests(newest), on="person")
        columns = ("person", "time", *GROUPS, "interests", "tenant")
    else:
        visits, columns = newest, ("person", "time", "title", "genres", *GROUPS, seen, "tenant")
    return as_tenants(visits[list(columns)], "tenant", names, events)


def _interests(ratings: pd.DataFrame) -> pd.DataFrame:
    """Of each person the genres that at least `INTEREST` of the liked films have, by name."""
    liked = ratings[ratings["liked"] == "yes"]
    having = liked.assign(genre=liked["genres"].str.split(", ")).explode("genre")
    having = having[having["genre"].isin(GENRES[1:])]
    share = having.groupby(["person", "genre"]).size() / liked.groupby("person").size().rename_axis("person")
    often = share[share >= INTEREST].reset_index().sort_values("genre")
    found = often.groupby("person")["genre"].agg(";".join)
    return (
        found.reindex(pd.unique(ratings["person"]), fill_value="")
        .rename("interests")
        .rename_axis("person")
        .reset_index()
    )


TASKS = {
    "regression": "recommendation-rating",
    "ranking": "recommendation-next",
    "multilabel": "recommendation-interests",
}
ADAPTER_100K = Adapter("recommendation", "a person", GROUPS, LEFT_OUT_100K, read_100k, TASKS, catalogue_100k)
ADAPTER_1M = Adapter("recommendation", "a person", GROUPS, LEFT_OUT_1M, read_1m, TASKS, catalogue_1m)
