"""The tenant file, `tenant.toml`: where the data lies, what it may cost, and what may leave. It stays at the tenant."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from fedprofile.common.card import Name
from fedprofile.common.config import Frozen, load_toml

DEFAULT_DELTA = 1e-6


class Columns(Frozen):
    """Which column of the source plays which part; every other column goes by its own name."""

    user: str
    label: str
    time: str | None = None
    """ISO 8601 date or time of the row. Without it a row has no history, and a user's rows have no order."""
    event_time: str | None = None
    """The time column of the `events` source where it differs from `time`."""
    group: str | None = None
    """The column that holds the card's group attribute; None declines to take part in the group table."""
    rename: Mapping[str, str] = Field(default_factory=dict)
    """Card name -> source column, where they differ."""
    protected: tuple[str, ...] = ()
    """Columns that no template and no feature may name."""


class FileSource(Frozen):
    """A file; a relative path counts from the tenant file."""

    kind: Literal["csv", "jsonl", "parquet"]
    path: Path


class DatabaseSpec(Frozen):
    """A database, through SQLAlchemy."""

    url: SecretStr
    """For example `postgresql+psycopg://reader@db/shop` or `sqlite:///shop.db`, whose path counts from the tenant
    file."""
    password_file: Path | None = None
    """Holds the password, which then need not stand in the URL; relative to the tenant file."""
    password_env: str | None = None
    """The environment variable that holds the password."""

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_file is not None and self.password_env is not None:
            raise ValueError("password_file and password_env are two places for one password; keep one of them")
        return self


class SqlSource(DatabaseSpec):
    """A query in a read-only transaction."""

    kind: Literal["sql"]
    query: str


class TableSpec(DatabaseSpec):
    """A table that rows are added to, and nothing else is done with; made where it is not there."""

    table: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")


Source = Annotated[FileSource | SqlSource, Field(discriminator="kind")]


class ReadingSpec(Frozen):
    """How the sources are read while a run lasts."""

    snapshot: Literal["round", "run"] = "round"
    """`round`: each round sees the source as it is then. `run`: all rounds see the rows of the first reading, kept in
    the tenant's directory, but for users who have left the source since."""


class PopulationSpec(Frozen):
    """Whose data it is. The ledger belongs to it, not to the directory or the federation."""

    name: Name
    declared_users: int = Field(ge=10)
    """A round number that a person types; never computed from the data and never following its growth."""
    ledger: Path | None = None
    """Relative to the tenant file, frozen at join; default `$XDG_STATE_HOME/fedprofile/populations/NAME.sqlite`."""
    apart_from: tuple[Name, ...] = ()
    """Populations in the same database of whom nobody is in this one; a person's word, for life."""


class BudgetSpec(Frozen):
    """For the population's life, over every federation, task and evaluation."""

    epsilon: float = Field(gt=0, le=50)
    delta: float | None = Field(default=None, gt=0, lt=1)
    """Default 1e-6, or a tenth of one over `declared_users` where that is smaller, which is also the most allowed."""


class RunSpec(Frozen):
    """This federation's share of the budget."""

    epsilon: float = Field(gt=0, le=50)
    delta: float | None = Field(default=None, gt=0, lt=1)
    """Default a quarter of the life's delta."""
    spare_rounds: int = Field(default=0, ge=0)
    """Rounds beyond the card's that the noise is solved for. A training that a crash cut off is drawn and
    paid for anew; without spares the run's last round is then refused by budget."""


class PrivacySpec(Frozen):
    """The mechanism's settings; all of them public constants, none taken from the data."""

    clip_norm: float = Field(default=1.0, gt=0)
    sample_rate: float = Field(default=0.1, gt=0, le=1)
    records_per_user: int = Field(default=4, ge=1, le=1024)
    evaluation_users: float = Field(default=0.2, ge=0.01, le=0.9)


class PolicySpec(Frozen):
    """What a request may ask for at most."""

    kinds: tuple[Literal["train", "evaluate", "deliver"], ...] = ("train", "evaluate", "deliver")
    max_rounds_a_day: int = Field(default=10_000, ge=1)
    until: date | None = None
    """The last day on which anything is answered."""
    reply_every: float = Field(default=30.0, ge=0.25)
    """Seconds; replies leave at the next multiple after the request."""


class BaseSource(Frozen):
    """Where the base model lies, when it is neither the embedded package nor on the hub."""

    path: Path


class JudgementSpec(Frozen):
    """What becomes of a prediction here. It is no part of what was agreed to, and nothing of it leaves."""

    band: tuple[float, float] | None = None
    """Binary tasks: probabilities of the positive label at which a person decides, ends included."""
    confidence: float = Field(default=0.0, ge=0, lt=1)
    """Probability of the most likely label below which a person decides."""
    replies: Path | None = None
    """CSV with the columns label and reply: what is answered where the label is decided without a person."""
    thresholds: dict[str, float] = Field(default_factory=dict)
    """Binary tasks: for each value of the card's group attribute the probability from which the second label is
    decided; 0.5 where there is none. It treats groups differently on purpose, which needs a legal basis."""
    review: TableSpec | None = None
    """Where `predict` adds what is left to a person, when no --review file is given."""

    @model_validator(mode="after")
    def _band_is_one(self) -> Self:
        if self.band is not None and not 0 <= self.band[0] < self.band[1] <= 1:
            raise ValueError("band must be two probabilities, the lower one first")
        if not all(0 < threshold < 1 for threshold in self.thresholds.values()):
            raise ValueError("thresholds must be probabilities above 0 and below 1")
        return self


class DecisionsSpec(Frozen):
    """What is written down of each prediction; see `fedprofile.client.decisions`."""

    log: Path
    """Relative to the tenant file; made at the first prediction, and only ever added to."""


class AdaptersSpec(Frozen):
    """Which of the adapters that come are used here. The server is told nothing of it."""

    accept: Literal["always", "not-worse"] = "always"
    """`not-worse`: an adapter is used once it was judged, on the tenant's own evaluation users, not to be worse than
    the one in use; see `fedprofile.client.acceptance`."""
    keep: int = Field(default=5, ge=2, le=1000)
    """How many of the newest are kept; the one in use always is."""


class TenantFile(Frozen):
    """The tenant file, whole."""

    format: Literal[1] = 1
    source: Source
    """The labelled rows."""
    events: Source | None = None
    """Earlier events, where they are not the labelled rows themselves."""
    columns: Columns
    reading: ReadingSpec = ReadingSpec()
    population: PopulationSpec
    budget: BudgetSpec
    run: RunSpec
    privacy: PrivacySpec = PrivacySpec()
    policy: PolicySpec = PolicySpec()
    base: BaseSource | None = None
    judgement: JudgementSpec | None = None
    adapters: AdaptersSpec = AdaptersSpec()
    decisions: DecisionsSpec | None = None

    @property
    def life_delta(self) -> float:
        """The delta of the population's life."""
        if self.budget.delta is not None:
            return self.budget.delta
        return min(DEFAULT_DELTA, self._largest_delta)

    @property
    def run_delta(self) -> float:
        """The delta of this federation's share."""
        return self.run.delta if self.run.delta is not None else self.life_delta / 4

    @property
    def _largest_delta(self) -> float:
        return 1 / (10 * self.population.declared_users)

    @model_validator(mode="after")
    def _budget_holds(self) -> Self:
        if self.life_delta > self._largest_delta:
            raise ValueError(
                f"budget.delta={self.life_delta:g} is above 1/(10 * declared_users) = {self._largest_delta:g}; "
                "lower it: with a larger delta the promise may say nothing about a single user"
            )
        if self.run.epsilon > self.budget.epsilon:
            raise ValueError(
                f"run.epsilon={self.run.epsilon:g} is above budget.epsilon={self.budget.epsilon:g}; "
                "lower the run's share"
            )
        if self.run_delta > self.life_delta:
            raise ValueError(
                f"run.delta={self.run_delta:g} is above budget.delta={self.life_delta:g}; lower the run's share"
            )
        return self


def load_tenant_file(path: Path) -> TenantFile:
    """Read `tenant.toml`.

    Args:
        path: The file.

    Returns:
        The tenant file.

    Raises:
        ConfigError: See `fedprofile.common.config.load_toml`.
    """
    return load_toml(path, TenantFile)
