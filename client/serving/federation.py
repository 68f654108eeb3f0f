"""A federation that is served: a tenant's directory, its model, and what is said of a prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.agreement import read_agreed
from fedprofile.client.decisions import DecisionLog
from fedprofile.client.directory import SegmentFile, TenantDirectory
from fedprofile.client.given import AskedColumns
from fedprofile.client.judgement import REVIEW
from fedprofile.client.prediction import Predictions
from fedprofile.client.profiler import Profiler
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import LoadedBases
from fedprofile.client.sources import check_asked
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.adapters import arrays_hash
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example
from fedprofile.common.messages import Arrays
from fedprofile.common.tasks import RegressionTask
from fedprofile.common.tenant import TenantFile


@dataclass
class Federation:
    """One federation at the tenant.

    Args:
        directory: The tenant's.
        tenant: The tenant file.
        segment: What join froze.
        profiler: The model with the adapter in use; another one after each swap.
        log: The tenant's decision log; None where it keeps none.
    """

    directory: TenantDirectory
    tenant: TenantFile
    segment: SegmentFile
    profiler: Profiler
    log: DecisionLog | None = None

    @classmethod
    def open(cls, root: Path, loaded: LoadedBases) -> "Federation":
        """Load what a directory holds.

        Args:
            root: The directory.
            loaded: Bases to share.

        Returns:
            The federation.

        Raises:
            ConfigError: See `fedprofile.client.agreement.read_agreed` and `Profiler.open`.
            PolicyRefusal: The card asks for a protected column, for the users' ids, or for the label itself.
        """
        directory = TenantDirectory(root)
        tenant, (card, segment) = directory.read_tenant_file(), read_agreed(directory)
        check_asked(tenant, card)
        log = DecisionLog.of(directory, tenant)
        return cls(directory, tenant, segment, Profiler.open(directory, card, tenant, loaded), log)

    @property
    def name(self) -> str:
        """The card's."""
        return self.profiler.card.name

    @property
    def columns(self) -> AskedColumns:
        """What a request must hold."""
        return AskedColumns.of(self.tenant, self.profiler.card)

    @property
    def adapters(self) -> AdapterFolder:
        """Those that came."""
        return AdapterFolder(self.directory, self.profiler.card.hash)

    def take(self, number: int, arrays: Arrays) -> None:
        """Put an adapter in; between batches alone.

        Args:
            number: After which round.
            arrays: Of the model's layout.
        """
        self.profiler.model.set_arrays(arrays)
        self.profiler = replace(self.profiler, round=number, adapter_hash=arrays_hash(arrays))

    def says(
        self, examples: Sequence[Example], scores: NDArray[np.float64], number: int, adapter_hash: str
    ) -> list[dict[str, Any]]:
        """The profile's entry for each record, once it is in the tenant's decision log.

        Args:
            examples: What was asked about, [n].
            scores: [n, outputs].
            number: After which round the adapter was that made them.
            adapter_hash: Its hash.

        Returns:
            Task, prediction, the decision and reply by `[judgement]`, and which model said it.

        Raises:
            ConfigError: The log cannot be written; nothing is answered then.
        """
        card, judgement = self.profiler.card, self.profiler.judgement
        users = tuple(example.user for example in examples)
        groups = tuple(example.group for example in examples)
        made = Predictions(number, card.hash, card.task, users, scores, judgement=judgement, groups=groups)
        if self.log is not None:
            self.log.append(users, made.outcomes, card_hash=card.hash, adapter=adapter_hash, round=number, way="serve")
        entries: list[dict[str, Any]] = [{"task": card.task.kind, "prediction": made.predicted(row)} for row in scores]
        if judgement is not None:
            for entry, decision in zip(entries, made.decisions, strict=True):
                entry["decision"] = decision
                if judgement.replies:
                    entry["reply"] = judgement.reply(decision)
        return [entry | {"round": number, "adapter": adapter_hash, "card": card.hash} for entry in entries]

    def log_explained(self, user: str, explanation: Mapping[str, Any]) -> None:
        """Write into the tenant's decision log that a score was given with its reasons.

        Args:
            user: Whose.
            explanation: Of `fedprofile.client.explanation.Explanation.as_dict`.

        Raises:
            ConfigError: The log cannot be written; nothing is answered then.
        """
        if self.log is not None:
            card, profiler = self.profiler.card, self.profiler
            self.log.append(
                [user],
                [explanation["output"]],
                card_hash=card.hash,
                adapter=profiler.adapter_hash,
                round=profiler.round,
                way="explain",
            )

    def facts(self) -> dict[str, Any]:
        """What a person should know: task, promise, rounds, and when the decision is left to a person."""
        card, spec, columns = self.profiler.card, self.tenant.judgement, self.columns
        promise = PrivacyLoss(self.segment.plan.epsilon, self.segment.plan.delta)
        unit = {"low": card.task.low, "high": card.task.high} if isinstance(card.task, RegressionTask) else {}
        return {
            "task": {"kind": card.task.kind, "outputs": list(card.task.outputs)} | unit,
            "round": self.profiler.round,
            "rounds": card.training.rounds,
            "adapter": self.profiler.adapter_hash,
            "card": card.hash,
            "base": card.base.id,
            "promise": promise.as_dict(),
            "review": None
            if spec is None
            else {"decision": REVIEW} | spec.model_dump(include={"band", "confidence", "thresholds"}),
            "columns": {"row": columns.row, "events": columns.events, "user": columns.user},
        }


def open_all(roots: Sequence[Path]) -> dict[str, Federation]:
    """Load several directories' federations, which share a base that is the same.

    Args:
        roots: The directories.

    Returns:
        By the card's name.

    Raises:
        ConfigError: See `Federation.open`; two directories have other populations or ledgers, or one federation.
        PolicyRefusal: See `Federation.open`.
    """
    found: dict[str, Federation] = {}
    first: tuple[Path, SegmentFile] | None = None
    loaded: LoadedBases = {}
    for root in roots:
        directory = TenantDirectory(root)
        segment = directory.read_segment()
        if first is None:
            first = root, segment
        ledgers = TenantDirectory(first[0]).ledger_path(first[1].ledger), directory.ledger_path(segment.ledger)
        if first[1].population != segment.population or ledgers[0] != ledgers[1]:
            raise ConfigError(
                f"--dir {first[0]} is of population '{first[1].population}' with ledger {ledgers[0]}, and --dir {root} "
                f"of '{segment.population}' with {ledgers[1]}; one profile is of one population, whose federations all "
                "spend from one ledger. Serve them apart."
            )
        federation = Federation.open(root, loaded)
        if federation.name in found:
            raise ConfigError(
                f"--dir {root}: its federation is called '{federation.name}', as one given before; serve them apart."
            )
        found[federation.name] = federation
    return found
