"""The self-test before the first spend: would anything be trained, rightly, and come out again?

Opacus and PEFT together have been seen to train nothing without a word, while epsilon was spent. Each process
therefore runs its model on synthetic tokens and synthetic values before its first reservation, so also after every
change of versions. No record is read, so the outcome says nothing about anyone.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from opacus.grad_sample.utils import prepare_module

from fedprofile.common.adapters import AdapterError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.export import read_adapter_folder, write_adapter_folder
from fedprofile.common.modeling.head import summed_loss
from fedprofile.common.modeling.invariance import SelfTestError
from fedprofile.common.modeling.lora import lora_layers
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

USERS = 6
"""Who have one made-up record each; fewer where a record is many rows."""
TOLERANCE = 1e-3
"""Of a gradient, relative to the largest of its tensor; of a step, to the largest of any record's."""
ROUNDINGS = 8.0
"""The same in roundings of the base's number format, where that is more: simulations may have a base in 16 bits."""
ROUNDING = 2e-8
"""Of what a step adds to a float32 of size 0.1."""
STEPS = (1.0, 0.1, 0.01, 0.001)
"""Parts of a step of which one must lower the loss."""
_REINSTALL = "reinstall the pinned versions of torch, opacus and peft"

Step = Callable[[Arrays, EncodedRecords], Arrays]
"""From an adapter and records of one user each to what the deployed trainer adds to it in one step of SGD at learning
rate 1, with every user in it, next to no noise and no clipping."""


def check_training(model: ProfileModel, step: Step) -> None:
    """Refuse a model that would not be trained, or not rightly. Its trainables hold synthetic values afterwards.

    Args:
        model: Of the card.
        step: Of the trainer that is going to train it.

    Raises:
        SelfTestError: A trainable gets no gradient, a record's gradient is not the one that it has alone, a step is
            not the mean of them, or does not lower the loss.
    """
    for parameter in model.trainables().values():
        # Zero factors and a zero head, as at the start of a federation, would hide that nothing reaches them.
        wave = torch.cos(torch.arange(parameter.numel(), dtype=torch.float32)) * 0.1
        parameter.data.copy_(wave.view_as(parameter))
    start, records = model.get_arrays(), _records(model)
    # Of the card's targets each layer has at least one module; that PEFT adapted all of them is `add_lora`'s to check.
    factors = len(lora_layers(model.encoder)) * len(model.card.adapter.train)
    if len(start) != factors + 2:
        raise SelfTestError(f"{len(start)} matrices would be trained, not the card's {factors + 2}; {_REINSTALL}.")
    tolerance = max(TOLERANCE, ROUNDINGS * model.precision)
    alone = [_gradients(model, records, [place]) for place in range(len(records))]
    together = _sample_gradients(model, records)
    for name in start:
        expected = torch.stack([gradients[name] for gradients in alone])
        if not bool(torch.isfinite(expected).all()) or not bool(expected.abs().sum() > 0):
            raise SelfTestError(f"the gradient of {name} is zero or not finite; use another base model or adapter.")
        if together.get(name) is None:
            raise SelfTestError(f"no gradient reaches {name}; {_REINSTALL}.")
        if not _within(together[name], expected, tolerance * float(expected.abs().max())):
            raise SelfTestError(f"per-sample gradients of {name} are not those of the records alone; {_REINSTALL}.")
    moved = step(start, records)
    for name in start:
        parts = torch.stack([gradients[name] for gradients in alone])
        # Records' gradients may cancel out, and a step's rounding is of their size and not of the mean's.
        near = tolerance * float(parts.abs().max()) + ROUNDING
        if not _within(torch.from_numpy(moved[name]), -parts.mean(dim=0), near):
            raise SelfTestError(f"a training step does not move {name} against its gradient; {_REINSTALL}.")
    model.set_arrays(start)
    before = _loss(model, records)
    if not any(_loss_at(model, start, moved, part, records) < before for part in STEPS):
        raise SelfTestError(f"a training step does not lower the loss; {_REINSTALL}.")


def check_export(model: ProfileModel) -> None:
    """Refuse a model whose adapter would not come back from the files that `flower-server export` writes.

    Args:
        model: With any values, which it has again afterwards.

    Raises:
        SelfTestError: It comes back otherwise, or not at all.
    """
    expected = model.get_arrays()
    with tempfile.TemporaryDirectory(prefix="fedprofile-self-test-") as folder:
        write_adapter_folder(model, Path(folder) / "adapter", rounds=0, tenants=())
        try:
            found = read_adapter_folder(model, Path(folder) / "adapter")
        except AdapterError as error:
            raise SelfTestError(f"an exported adapter cannot be loaded again ({error}); {_REINSTALL}.") from error
    for name, value in expected.items():
        if not np.allclose(found[name], value, rtol=1e-5, atol=1e-7):
            raise SelfTestError(f"an exported adapter comes back with another {name}; {_REINSTALL}.")


def _records(model: ProfileModel) -> EncodedRecords:
    """One record for each of a few users; all are made up."""
    card = model.card
    vocabulary, length = len(model.tokenizer), min(8, card.history.max_tokens)
    rows = card.task.rows_per_record
    users = max(2, USERS // rows)
    places = np.arange(users * rows, dtype=np.int64)
    return EncodedRecords(
        users=tuple(map(str, range(users))),
        user=places // rows,
        tokens=[((np.arange(length - place % 2) * 7 + 11 * place) % vocabulary).astype(np.int32) for place in places],
        features=np.linspace(0, 1, len(places) * card.features.width, dtype=np.float32).reshape(len(places), -1),
        labels=card.task.made_up(places),
        groups=np.zeros_like(places),
    )


def _forward(model: ProfileModel, records: EncodedRecords, places: list[int]) -> torch.Tensor:
    tokens = [records.tokens[place] for place in places]
    logits = model(tokens, records.features[places], PrefixCache(model))
    return summed_loss(logits, torch.from_numpy(records.labels[places]), model.card.task)


def _gradients(model: ProfileModel, records: EncodedRecords, places: list[int]) -> dict[str, torch.Tensor]:
    """By autograd alone; zeros where nothing arrives."""
    trainables = model.trainables()
    loss = _forward(model, records, places)
    if not loss.requires_grad:
        raise SelfTestError(f"no gradient reaches any trainable; {_REINSTALL}.")
    found = torch.autograd.grad(loss, list(trainables.values()), allow_unused=True)
    missing = [name for name, gradient in zip(trainables, found, strict=True) if gradient is None]
    if missing:
        raise SelfTestError(f"no gradient reaches {missing[0]}; {_REINSTALL}.")
    return dict(zip(trainables, found, strict=True))


def _sample_gradients(model: ProfileModel, records: EncodedRecords) -> dict[str, torch.Tensor]:
    """By Opacus's hooks, all records at once."""
    trainables = model.trainables()
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            _forward(model, records, list(range(len(records)))).backward()
        samples = {name: getattr(parameter, "grad_sample", None) for name, parameter in trainables.items()}
    finally:
        hooks.cleanup()
        for parameter in trainables.values():
            parameter.grad = None
    return {name: sample for name, sample in samples.items() if isinstance(sample, torch.Tensor)}


def _within(found: torch.Tensor, expected: torch.Tensor, near: float) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= near)


def _loss(model: ProfileModel, records: EncodedRecords) -> float:
    with torch.no_grad():
        return float(_forward(model, records, list(range(len(records)))))


def _loss_at(model: ProfileModel, start: Arrays, moved: Arrays, part: float, records: EncodedRecords) -> float:
    model.set_arrays({name: (start[name] + part * moved[name]).astype(np.float32) for name in start})
    return _loss(model, records)
