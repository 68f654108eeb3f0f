"""An experiment: one TOML file that names a population, how it is spread over tenants, and what is varied.

    name = "epsilon-and-strategy"
    [data]         dataset and its folder; nothing for the built-in population
    [partition]    which users are at which tenant
    [card]         sections of the scenario's federation card, replaced key by key
    [tenant]       sections of the scenario's tenant file, the same
    [mitigation]   what is done for those whom the federation serves worse
    [engine]       what it runs on; changes no result beyond floating-point rounding
    [tracking]     whether TensorBoard, MLflow or Weights & Biases get each cell's rounds; changes no result
    [sweep]        a list for each setting that is varied; the experiment's cells are all combinations
    [[also]]       more of the same: another table of lists, whose combinations are cells as well

A setting in `[sweep]` is `seed`, `split_seed`, `epsilon` (`inf` for no noise), `arm` (`federated`; `alone`, each tenant
by itself; `pooled`, all users at one tenant, which no federation can have) or a dotted key such as
"card.aggregation.strategy" or "partition.alpha".
"""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fedprofile.common.config import Frozen, load_toml, validate
from fedprofile.common.errors import ConfigError
from fedprofile.server.trackers import TrackingSpec
from fedprofile.simulations.mitigations import MitigationSpec

Values = Annotated[list[Any], Field(min_length=1)]

TOP_KEYS = ("seed", "split_seed", "epsilon", "arm")
SECTIONS = ("partition", "card", "tenant", "mitigation")
Arm = Literal["federated", "alone", "pooled"]


class DataSpec(Frozen):
    """Where the users come from."""

    dataset: str = "built-in"
    """`built-in`, `known`, or a name of `fedprofile.simulations.datasets`."""
    data_dir: Path | None = None
    """The folder that holds the data set as its owner published it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the data set: who is a tenant, or the settings of the population with known truth (`known`)."""
    seed: int = 0
    """Of a generated population, and of `limit`'s choice."""
    limit: int | None = Field(default=None, ge=10)
    """Users of each of the data's tenants at most, chosen at random; for quick tries."""


class PartitionSpec(Frozen):
    """Which users are at which tenant; made by flwr-datasets, over users, so that nobody is at two tenants."""

    kind: Literal["natural", "iid", "dirichlet", "linear", "square", "exponential"] = "natural"
    """As the data has it; alike; label skew (Hsu et al. 2019, https://arxiv.org/abs/1909.06335); or quantity skew:
    tenant i has users in proportion to i, i squared, or e to the i."""
    column: str | None = None
    """For `natural`: a column of the labelled rows, instead of the data's own tenants."""
    tenants: int = Field(default=8, ge=1)
    """How many; not for `natural`."""
    alpha: float = Field(default=0.5, gt=0)
    """For `dirichlet`: the concentration; the smaller, the more skewed."""
    smallest: int = Field(default=20, ge=10)
    """Users below which a tenant does not take part."""


class EngineSpec(Frozen):
    """What an experiment runs on."""

    kind: Literal["in-process", "ray"] = "in-process"
    """This process, or Flower's own simulation engine."""
    base: Path | None = None
    """The folder of the card's base model, instead of the embedded package or the hub's cache."""
    device: str = "cpu"
    """A torch device, such as `cuda`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the base's weights and activations; adapters, gradients and sums stay in float32 and above. Results are then
    those of another base. 16 bits are for GPUs: processors without such units are slower with them."""
    tokens_at_once: int = Field(default=2048, ge=1)
    """Padded tokens of one pass; halved by itself where memory runs out."""
    block: int = Field(default=128, ge=1)
    """Tenants that train at once."""
    cache: Literal["full", "lazy", "none"] = "full"
    """Activations of the frozen layers: of every record before the first round, when first needed, or never stored."""
    cache_mib: int | None = Field(default=None, ge=1)
    """Of stored activations at most; the rest is computed each time."""
    ray_cpus: float = Field(default=1.0, gt=0)
    """Cores of each of Ray's actors."""
    ray_gpus: float = Field(default=0.0, ge=0)
    """Fraction of a GPU of each of Ray's actors."""


class Experiment(Frozen):
    """An experiment, whole. See the module's docstring."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    data: DataSpec = DataSpec()
    partition: PartitionSpec = PartitionSpec()
    card: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tenant: dict[str, dict[str, Any]] = Field(default_factory=dict)
    mitigation: MitigationSpec = MitigationSpec()
    engine: EngineSpec = EngineSpec()
    tracking: TrackingSpec = TrackingSpec()
    sweep: dict[str, Values] = Field(default_factory=dict)
    also: list[dict[str, Values]] = Field(default_factory=list)

    def cells(self) -> list["Cell"]:
        """All combinations of `[sweep]`, its last setting varying fastest, and then those of each `[[also]]`.

        Raises:
            ConfigError: A setting is not one that can be varied, or a value does not fit it.
        """
        tables = [self.sweep, *self.also]
        for key in itertools.chain(*tables):
            if key not in TOP_KEYS and not (key.count(".") >= 1 and key.split(".")[0] in SECTIONS):
                raise ConfigError(
                    f"sweep.'{key}' cannot be varied; use {', '.join(TOP_KEYS)}, or a dotted key that begins with "
                    f"{', '.join(f'{section}.' for section in SECTIONS)}."
                )
        cells = [
            self._cell(dict(zip(table, values, strict=True)))
            for table in tables
            for values in itertools.product(*table.values())
        ]
        names = [cell.name for cell in cells]
        if len(set(names)) < len(names):
            raise ConfigError("[sweep] and [[also]] name the same cell twice; every cell must be another one.")
        return cells

    def _cell(self, settings: dict[str, Any]) -> "Cell":
        data: dict[str, Any] = {
            "partition": self.partition.model_dump(),
            "card": self.card,
            "tenant": self.tenant,
            "mitigation": self.mitigation.model_dump(),
        }
        data = json.loads(json.dumps(data))
        for key, value in settings.items():
            if key not in TOP_KEYS:
                _put(data, key, value)
        plain = {key: settings[key] for key in TOP_KEYS if key in settings}
        name = "_".join(f"{_short(key)}-{_short(str(value))}" for key, value in settings.items()) or "only"
        noise = plain.get("epsilon") != math.inf
        if not noise:
            del plain["epsilon"]
        return validate({"name": name, "settings": settings, "noise": noise, **plain, **data}, Cell, f"cell {name}")


class Cell(Frozen, ser_json_inf_nan="constants"):
    """One federation of an experiment.

    Args:
        name: Of its file.
        settings: What is varied, with this cell's values.
        noise: False draws zeros instead of noise; the result is then not private.
        seed: Of all sampling and noise.
        split_seed: Decides who is an evaluation user.
        epsilon: Of every tenant's life and run, at the tenant file's delta; None leaves the tenant file's.
        arm: Who trains with whom.
        partition: Which users are at which tenant.
        card: Sections to replace.
        tenant: Sections to replace.
        mitigation: What is done for those whom the federation serves worse.
    """

    name: str
    settings: dict[str, Any]
    noise: bool = True
    seed: int = 0
    split_seed: int = 0
    epsilon: float | None = Field(default=None, gt=0)
    arm: Arm = "federated"
    partition: PartitionSpec
    card: dict[str, dict[str, Any]]
    tenant: dict[str, dict[str, Any]]
    mitigation: MitigationSpec


def as_json(value: Any) -> Any:
    """Settings as JSON has them; what has no number there is "inf", as in a TOML file, and not null."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment.

    Args:
        path: Its TOML file.
        overrides: `key=value` with a dotted key and a TOML value; a bare word is a string.

    Returns:
        The experiment.

    Raises:
        ConfigError: The file or an override cannot be used.
    """
    experiment = load_toml(path, Experiment)
    data = experiment.model_dump(mode="python", exclude_unset=True)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set '{override}': is not key=value, such as --set engine.device=cuda.")
        _put(data, key.strip(), _value(text))
    return validate(data, Experiment, str(path)) if overrides else experiment


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. The keys of `[sweep]` hold dots themselves."""
    first, _, rest = key.partition(".")
    if not rest:
        data[first] = value
        return
    if first == "sweep":
        data.setdefault("sweep", {})[rest] = value
        return
    inner = data.setdefault(first, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"'{key}': '{first}' has no settings of its own.")
    _put(inner, rest, value)


def _short(text: str) -> str:
    """What a file may be called."""
    return re.sub(r"[^a-zA-Z0-9.]+", "-", text.rsplit(".", 1)[-1] if not _is_number(text) else text).strip("-")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
