"""`flower-client` cannot be made to use a seed: not by file, flag, environment or message, nor by code it imports."""

import ast
import dataclasses
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pydantic
import typer.main

from fedprofile.client.cli import app
from fedprofile.common.card import FederationCard
from fedprofile.common.messages import Kind, LedgerMark, Reply, Request
from fedprofile.common.tenant import TenantFile

ROOT = Path(__file__).resolve().parents[2]
DRAWS = ("seed", "random", "noise_key", "rng", "generator")
DRAWN = """
import random, sys
import numpy as np
import torch
import fedprofile.client.cli
from fedprofile.client.randomness import SecureRandomness
random.seed(0); np.random.seed(0); torch.manual_seed(0); torch.use_deterministic_algorithms(True)
source = SecureRandomness()
print(source.uniform(3).tolist(), source.gaussian(3).tolist())
"""


def _keys(model: type[pydantic.BaseModel], before: str = "") -> Iterator[str]:
    """Every key of a TOML file, transitively."""
    for name, info in model.model_fields.items():
        yield before + name
        for inner in _models(info.annotation):
            yield from _keys(inner, f"{before}{name}.")


def _models(annotation: object) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _named_like_a_draw(names: Iterator[str]) -> list[str]:
    return [name for name in names if any(word in name.lower().rsplit(".", 1)[-1] for word in DRAWS)]


def test_no_key_of_a_file_is_a_seed() -> None:
    keys = [*_keys(TenantFile), *_keys(FederationCard)]
    assert "privacy.sample_rate" in keys and "adapter.rank" in keys
    assert _named_like_a_draw(iter(keys)) == []


def test_no_flag_is_a_seed() -> None:
    commands = typer.main.get_group(app).commands
    flags = [option for command in commands.values() for part in command.params for option in part.opts]
    assert "--record-egress" in flags
    assert _named_like_a_draw(iter(flags)) == []
    # Typer gives an option a variable of the environment only where it is asked to.
    assert not any(part.envvar for command in commands.values() for part in command.params)


def test_no_field_of_a_message_is_a_seed() -> None:
    fields = {field.name for kind in (Request, Reply, LedgerMark) for field in dataclasses.fields(kind)}
    assert fields == {"kind", "card_hash", "round", "arrays", "ledger", "sequence", "head"}
    assert len(Kind) == 3


def test_the_client_names_no_other_source_and_takes_none_from_outside() -> None:
    """Nothing of the client or of what it shares with the server builds, seeds or imports another generator."""
    drawing: dict[str, set[str]] = {}
    for file in [*(ROOT / "client").rglob("*.py"), *(ROOT / "common").rglob("*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imports |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imports & {"random", "numpy.random", "fedprofile.simulations"}, file
        found = names & {"seed", "manual_seed", "Generator", "default_rng", "SecureRandomness", "randn"}
        if found:
            drawing[file.relative_to(ROOT).as_posix()] = found
    assert drawing == {
        "client/site.py": {"SecureRandomness"},
        "client/worth.py": {"SecureRandomness"},  # Nothing of it is sent or stored.
        # Orders of events in an explanation, with torch's own state put back; nothing of it is sent.
        "client/explanation.py": {"manual_seed"},
        # A ranking's other candidates: a hash of what is public and of the user's own id, and no noise.
        "common/candidates.py": {"Generator"},
        "client/training.py": {"SecureRandomness"},  # The self-test's step, on synthetic records.
        # Synthetic records for the self-test.
        "common/modeling/invariance.py": {"default_rng"},
    }


def test_whatever_can_be_seeded_around_it_two_processes_draw_differently() -> None:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0", "SEED": "0", "FEDPROFILE_SEED": "0", "FLWR_SEED": "0", "PL_GLOBAL_SEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }  # fmt: skip
    first, second = (
        subprocess.run([sys.executable, "-c", DRAWN], capture_output=True, text=True, env=environment, check=True)
        for _ in range(2)
    )
    assert first.stdout.count(",") == 4 and first.stdout != second.stdout
