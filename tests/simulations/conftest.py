"""Experiments over the tiny base, so that whole sweeps take seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedprofile.common.modeling.base import hash_base

WriteExperiment = Callable[..., Path]


@pytest.fixture
def write_experiment(tmp_path: Path, tiny_base: Path) -> WriteExperiment:
    """A function that writes an experiment on the built-in population; sections can be given or replaced."""

    def write(**sections: Any) -> Path:
        base = hash_base(tiny_base, "example/tiny-bert", "main").model_dump()
        experiment: dict[str, Any] = {
            "name": "small",
            "card": {"training": {"rounds": 2, "local_steps": 2}, "base": base, "adapter": {"rank": 2}},
            "tenant": {"privacy": {"sample_rate": 0.05}},
            "data": {"limit": 60},
            "partition": {"kind": "iid", "tenants": 3},
            "engine": {"base": str(tiny_base)},
        }
        for name, section in sections.items():
            old = experiment.get(name)
            experiment[name] = {**old, **section} if isinstance(old, dict) and name != "sweep" else section
        path = tmp_path / "experiment.toml"
        path.write_text(tomli_w.dumps(experiment), encoding="utf-8")
        return path

    return write
