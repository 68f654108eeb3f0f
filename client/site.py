"""Everything of one running tenant, built from its directory: data, model, ledger, and the app that answers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.client.agreement import Agreement
from fedprofile.client.app import TenantApp
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.outbox import Outbox
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.received import AdapterFolder
from fedprofile.client.records import ExampleSource, RecordSource
from fedprofile.client.registry import Registry
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, RefusalCode
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays, Kind, refusal_of, request_of
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile

_log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass
class Site:
    """A tenant that can answer.

    Args:
        card: The agreed card.
        tenant: The tenant file.
        ledger: Of the population; open, held by this process.
        segment: Of this run.
        app: Turns requests into replies.
        model: The federation's model.
        adapters: Where received adapters are kept.
        say: Takes plain lines for the tenant.
        over: Whether the run is over as far as this tenant knows: it was handed the final adapter, now or earlier.
    """

    card: FederationCard
    tenant: TenantFile
    ledger: Ledger
    segment: Segment
    app: TenantApp
    model: ProfileModel
    adapters: AdapterFolder
    say: Say
    over: bool = False

    def answer(self, request: Message) -> Message:
        """Turn a request into a reply."""
        reply = self.app.answer(request)
        self.over |= request.metadata.message_type == Kind.DELIVER
        return reply

    def sent(self, request: Message, reply: Message) -> bool:
        """After a reply has left: tell the tenant, keep the adapter; True when the run is over.

        Raises:
            LedgerBehindError: The server has seen more of the ledger than there is.
        """
        kind, number = request.metadata.message_type, "?"
        if reply.has_error():
            code = refusal_of(reply)
            if request.has_content():
                try:
                    decoded = request_of(request)
                except Exception:
                    self.say(f"a request was refused ({code.value}): it is not one of this federation's.")
                    return False
                number = str(decoded.round)
                if code is RefusalCode.LEDGER:
                    self.ledger.check_mark(decoded.ledger)
            self.say(f"round {number}: {kind}: {_REASONS[code]}")
            return kind == Kind.DELIVER and code is RefusalCode.POLICY
        decoded = request_of(request)
        after = decoded.round - 1 if decoded.kind is Kind.TRAIN else decoded.round
        try:
            self.adapters.keep(decoded.arrays, after)
        except OSError as error:
            _log.error("could not keep an adapter: %s", type(error).__name__)
        if decoded.kind is Kind.TRAIN:
            self.say(f"round {decoded.round} of {self.card.training.rounds}: update sent.")
        elif decoded.kind is Kind.EVALUATE:
            self.say(f"round {decoded.round} of {self.card.training.rounds}: metrics table sent.")
        else:
            self.say(f"the run is over after round {decoded.round}; its adapter is stored for `flower-client predict`.")
        return decoded.kind is Kind.DELIVER

    def close(self) -> None:
        """Let go of the ledger."""
        self.ledger.close()


LoadedBases = dict[tuple[str, str, str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
"""Base models by the hashes of their weights, config and tokenizer."""


def load_model(
    card: FederationCard, tenant: TenantFile, folder: Path, loaded: LoadedBases | None = None
) -> tuple[ProfileModel, PreTrainedTokenizerBase]:
    """Load the card's base model, check its hashes, and put the federation's model on it.

    Args:
        card: The agreed card.
        tenant: Says where the base lies, if it does.
        folder: What relative paths count from.
        loaded: Bases that are loaded already, of which the card's is taken; one that is not among them is added.

    Returns:
        The model and the base's tokenizer.

    Raises:
        ConfigError: The base is missing or another one than the card's.
    """
    bases = {} if loaded is None else loaded
    hashes = (card.base.weights_sha256, card.base.config_sha256, card.base.tokenizer_sha256)
    if hashes not in bases:
        bases[hashes] = load_base(resolve_base(card.base, folder / tenant.base.path if tenant.base else None))
    base, tokenizer = bases[hashes]
    return ProfileModel(card, base, tokenizer), tokenizer


def open_site(
    directory: TenantDirectory, agreement: Agreement, examples: ExampleSource, say: Say, registry: Registry | None
) -> Site:
    """Open everything that a round needs, so that a round is only training.

    Args:
        directory: The tenant's.
        agreement: What the tenant agreed to; see `read_agreement`.
        examples: Reads the source.
        say: Takes plain lines for the tenant.
        registry: See `fedprofile.client.agreement.claim_population`.

    Returns:
        The site; close it.

    Raises:
        ConfigError: The base model, the ledger or a file of the directory cannot be used.
        DataError: The source cannot be used.
        ActivationError: The base model's activations of a record are not finite.
        SelfTestError: What is installed would not train this model rightly; nothing has been spent.
    """
    card, tenant, frozen = agreement.card, agreement.tenant, agreement.segment
    ledger = agreement.open_ledger(directory, registry)
    try:
        segment = ledger.segment_of(frozen.plan)
        if segment is None:
            raise ConfigError(
                f"{ledger.path}: holds no segment for this run; restore its newest copy, or join again with "
                f"`flower-client join --dir {directory.root}`."
            )
        if segment.plan != frozen.plan:
            raise ConfigError(
                f"{ledger.path}: holds this run with another noise than was frozen at join, so it was edited; restore "
                "its newest copy."
            )
        model, tokenizer = load_model(card, tenant, directory.root)
        cache = PrefixCache(model, folder=directory.cache, secret=directory.secret())

        def refresh(records: EncodedRecords) -> None:
            viewed = records.with_views(card.training.views)
            cache.prune(viewed.tokens)
            cache.fill(viewed.tokens)
            if wrong := len(np.unique(viewed.user[cache.broken(viewed.tokens)])):
                _log.warning(
                    "the base model's activations are not finite for %d users; these records count zero.", wrong
                )

        source = RecordSource(
            examples=examples,
            card=card,
            tokenizer=tokenizer,
            evaluation_user=ledger.evaluation_user,
            on_change=refresh,
        )
        # Strictly, as nothing has been sent yet; what is wrong later leaves out the user whose it is.
        examples.validate()
        found = source()
        views = card.training.views
        cache.check_finite([*found.training.with_views(views).tokens, *found.evaluation.with_views(views).tokens])
        say(
            f"ready: {len(found.training.users)} users to train on, {len(found.evaluation.users)} to evaluate on; "
            f"at most {agreement.cap}."
        )
        settings = TrainingSettings.of(card, segment.plan, frozen.declared_users)
        trainer = PrivateTrainer(model=model, cache=cache, settings=settings)
        # Also before the first reservation, by the app; here, so that a person is told and no round waits for it.
        trainer.self_test()
        if model.one_at_a_time:
            say(
                "note: on this machine a record's last bits depend on the records beside it, so each is computed "
                "alone; this is slow, and as private."
            )
        adapters = AdapterFolder(directory, card.hash, tenant.adapters)
        app = TenantApp(
            card=card,
            layout=model.layout(),
            trainer=trainer,
            evaluator=_evaluator(model, cache, card, segment),
            records=source,
            ledger=ledger,
            segment=segment,
            outbox=Outbox(directory.outbox),
            policy=Policy.of(tenant.policy),
            make_randomness=SecureRandomness,
            on_adapter=partial(adapters.keep, final=True),
        )
    except BaseException:
        ledger.close()
        raise
    return Site(card, tenant, ledger, segment, app, model, adapters, say, over=adapters.has_final())


def _evaluator(model: ProfileModel, cache: PrefixCache, card: FederationCard, segment: Segment) -> PrivateEvaluator:
    def predict(arrays: Arrays, records: EncodedRecords) -> NDArray[np.floating]:
        model.set_arrays(arrays)
        return model.predict(records, cache)

    return PrivateEvaluator(
        predict=predict,
        task=card.task,
        noise_multiplier=segment.plan.evaluation_noise_multiplier,
        records_per_user=segment.plan.records_per_user,
    )


_REASONS = {
    RefusalCode.BUDGET: "refused, this run's share is spent and nothing more of this kind leaves.",
    RefusalCode.POLICY: "refused, your [policy] does not allow it; client.log says what.",
    RefusalCode.CARD: "refused, it is for another federation card; ask the operator for a new invite.",
    RefusalCode.ADAPTER: "refused, what came with it is not an adapter of the agreed card.",
    RefusalCode.LEDGER: "refused, the ledger is behind what the server has seen.",
    RefusalCode.UNAVAILABLE: "not answered; client.log names the kind of error, the server is told no reason.",
}
