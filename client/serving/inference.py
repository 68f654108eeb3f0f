"""The Open Inference Protocol, version 2, without its transport: https://github.com/kserve/open-inference-protocol.

Each federation is a model, whose versions are rounds and which has one version at a time.

    input   request  BYTES [n]           the JSON of `POST /profile`, read for this federation alone
    output  scores   FP64  [n, outputs]  probabilities, or the target in its own unit
    output  profile  BYTES [n]           the profile's entry as JSON
    output  label    BYTES [n]           the most likely label; of binary and multiclass tasks
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.given import GivenError, Wrong
from fedprofile.client.serving.federation import Federation
from fedprofile.client.serving.service import Service
from fedprofile.common.tasks import BinaryTask, MulticlassTask, RegressionTask

INPUT = "request"
EXTENSIONS = ("binary_tensor_data",)


class UnknownModelError(Exception):
    """No model of this name and version is here."""


@dataclass(frozen=True)
class Tensor:
    """An output.

    Args:
        name: See the module's docstring.
        values: float64, or an array of bytes objects.
    """

    name: str
    values: NDArray[Any] = field(repr=False)

    @property
    def datatype(self) -> str:
        """The protocol's name of it."""
        return "FP64" if self.values.dtype == np.float64 else "BYTES"


@dataclass(frozen=True)
class Inferred:
    """An answer.

    Args:
        version: Which round's adapter made it.
        outputs: Those that were asked for.
    """

    version: str
    outputs: tuple[Tensor, ...]


def server_metadata() -> dict[str, Any]:
    """Of `/v2`."""
    return {"name": "fedprofile", "version": version("fedprofile"), "extensions": list(EXTENSIONS)}


def find_model(service: Service, name: str, wanted: str = "") -> Federation:
    """The federation that a model's name and version stand for.

    Args:
        service: Holds them.
        name: The card's.
        wanted: A round; empty for whichever is there.

    Raises:
        UnknownModelError: It is not here.
    """
    federation = service.federations.get(name)
    if federation is None or wanted not in ("", str(federation.profiler.round)):
        raise UnknownModelError
    return federation


def model_metadata(federation: Federation) -> dict[str, Any]:
    """Of `/v2/models/NAME`."""
    task = federation.profiler.card.task
    outputs = [
        {"name": "scores", "datatype": "FP64", "shape": [-1, len(task.outputs)]},
        {"name": "profile", "datatype": "BYTES", "shape": [-1]},
    ]
    if isinstance(task, BinaryTask | MulticlassTask):
        outputs.append({"name": "label", "datatype": "BYTES", "shape": [-1]})
    return {
        "name": federation.name,
        "versions": [str(federation.profiler.round)],
        "platform": "fedprofile",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": outputs,
    }


def check_input(inputs: Sequence[tuple[str, str, Sequence[int]]], most: int) -> int:
    """Refuse inputs that are not the one that a model takes.

    Args:
        inputs: Name, datatype and shape of each.
        most: Requests in one.

    Returns:
        How many requests it is to hold.

    Raises:
        GivenError: They are not it.
    """
    if len(inputs) != 1 or inputs[0][0] != INPUT:
        raise GivenError([Wrong("inputs", f"are not the one input '{INPUT}'")])
    _, datatype, shape = inputs[0]
    if datatype != "BYTES":
        raise GivenError([Wrong(f"inputs.{INPUT}.datatype", "is not BYTES")])
    if len(shape) != 1 or not 1 <= shape[0] <= most:
        raise GivenError([Wrong(f"inputs.{INPUT}.shape", f"is not one dimension of 1 to {most}")])
    return shape[0]


async def infer(service: Service, federation: Federation, texts: Sequence[bytes], asked: Collection[str]) -> Inferred:
    """Ask a model.

    Args:
        service: Answers.
        federation: The model.
        texts: The input's elements.
        asked: Names of outputs; empty for all.

    Returns:
        The outputs.

    Raises:
        GivenError: A request cannot be read, or an output is not the model's.
        QueueFullError, LateError: See `Service.scored`.
    """
    task = federation.profiler.card.task
    there = [output["name"] for output in model_metadata(federation)["outputs"]]
    if not set(asked) <= set(there):
        raise GivenError([Wrong("outputs", f"are not among {', '.join(there)}")])
    scored, entries = await service.scored(federation.name, texts)
    made: dict[str, NDArray[Any]] = {
        "scores": task.in_unit(scored.scores) if isinstance(task, RegressionTask) else scored.scores,
        "profile": _texts([json.dumps(entry, ensure_ascii=False) for entry in entries]),
    }
    if "label" in there:
        made["label"] = _texts([entry["prediction"]["label"] for entry in entries])
    return Inferred(str(scored.round), tuple(Tensor(name, made[name]) for name in there if name in asked or not asked))


def _texts(texts: Sequence[str]) -> NDArray[Any]:
    found = np.empty(len(texts), dtype=object)
    found[:] = [text.encode() for text in texts]
    return found
