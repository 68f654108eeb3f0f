"""The self-test before the first spend: would anything be trained at all?

Opacus and PEFT together have been seen to train nothing without a word, while epsilon was spent. Before the first
reservation the model therefore runs on synthetic tokens and synthetic values: gradients must reach every trainable,
Opacus's per-sample gradients must add up to autograd's, and a step must change the loss. No record is read, so the
outcome says nothing about anyone.
"""

import warnings

import numpy as np
import torch
from opacus.grad_sample.utils import prepare_module
from torch import nn

from fedprofile.common.modeling.head import summed_loss
from fedprofile.common.modeling.invariance import SelfTestError
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

RECORDS = 6


def check_gradients(model: ProfileModel) -> None:
    """Refuse a model that would not be trained. Its trainables hold synthetic values afterwards.

    Args:
        model: Of the card.

    Raises:
        SelfTestError: A trainable gets no gradient, a per-sample gradient is wrong, or a step changes nothing.
    """
    trainables = model.trainables()
    for parameter in trainables.values():
        # Zero factors and a zero head, as at the start of a federation, would hide that nothing reaches them.
        wave = torch.cos(torch.arange(parameter.numel(), dtype=torch.float32)) * 0.1
        parameter.data.copy_(wave.view_as(parameter))
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    try:
        before = _loss(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            before.backward()
        for name, parameter in trainables.items():
            _check_one(name, parameter)
        with torch.no_grad():
            for parameter in trainables.values():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-2)
            if float(_loss(model)) == float(before.detach()):
                raise SelfTestError("a training step does not change the loss; reinstall the pinned versions.")
    finally:
        hooks.cleanup()
        for parameter in trainables.values():
            parameter.grad = None


def _check_one(name: str, parameter: nn.Parameter) -> None:
    samples = getattr(parameter, "grad_sample", None)
    if parameter.grad is None or not isinstance(samples, torch.Tensor) or len(samples) != RECORDS:
        raise SelfTestError(f"no gradient reaches {name}; reinstall the pinned versions of opacus and peft.")
    if not bool(torch.isfinite(samples).all()) or not bool(samples.abs().sum() > 0):
        raise SelfTestError(f"the gradient of {name} is zero or not finite; use another base model or adapter.")
    if not torch.allclose(samples.sum(dim=0), parameter.grad, rtol=1e-3, atol=1e-5 * float(parameter.grad.abs().max())):
        raise SelfTestError(f"per-sample gradients of {name} do not add up; reinstall the pinned versions.")


def _loss(model: ProfileModel) -> torch.Tensor:
    card = model.card
    vocabulary = len(model.tokenizer)
    length = min(8, card.history.max_tokens)
    tokens = [
        ((np.arange(length - record % 2) * 7 + 11 * record) % vocabulary).astype(np.int32) for record in range(RECORDS)
    ]
    features = np.linspace(0, 1, RECORDS * card.features.width, dtype=np.float32).reshape(RECORDS, -1)
    labels = torch.arange(RECORDS) % len(card.task.labels)
    return summed_loss(model(tokens, features, PrefixCache(model)), labels)
