"""What a tenant has agreed to: the card, the settings frozen at join, and the tenant file that still fits them."""

import difflib
import json
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from fedprofile.client.directory import SegmentFile, TenantDirectory, default_ledger, write_model, write_private
from fedprofile.client.enrolment import write_enrolment
from fedprofile.client.high_water import high_waters
from fedprofile.client.ledger import Ledger, missing_ledger
from fedprofile.client.ledger_file import other_user_column
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.registry import Claim, Registry
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Invite
from fedprofile.common.errors import ConfigError, LedgerBehindError, printable
from fedprofile.common.tenant import TenantFile


@dataclass(frozen=True)
class Agreement:
    """A tenant that has joined.

    Args:
        invite: Where the server is.
        card: Agreed to.
        tenant: The tenant file as it is now.
        segment: What join froze.
    """

    invite: Invite
    card: FederationCard
    tenant: TenantFile
    segment: SegmentFile

    @property
    def cap(self) -> PrivacyLoss:
        """This federation's share."""
        return PrivacyLoss(self.segment.plan.epsilon, self.segment.plan.delta)

    def open_ledger(self, directory: TenantDirectory, registry: Registry | None) -> Ledger:
        """Open the population's ledger for writing.

        Args:
            directory: The tenant's.
            registry: See `claim_population`.

        Raises:
            ConfigError: It is missing or cannot be opened; a missing one is never made anew here.
            LedgerBehindError: It is older than the directory's or the account's marks.
        """
        account = None if registry is None else registry.marks
        return open_frozen_ledger(directory, self.segment, self.tenant, marks=directory.marks, account_marks=account)


def open_frozen_ledger(
    directory: TenantDirectory,
    segment: SegmentFile,
    tenant: TenantFile,
    *,
    marks: Path | None,
    account_marks: Path | None,
) -> Ledger:
    """Open the ledger that was frozen at join.

    Args:
        directory: The tenant's.
        segment: What join froze.
        tenant: Says the life's budget, which the ledger must hold.
        marks: See `Ledger.open`.
        account_marks: See `Ledger.open`.

    Returns:
        The ledger.

    Raises:
        ConfigError: It is missing or cannot be opened.
        LedgerBehindError: It is older than the marks.
    """
    return Ledger.open(
        directory.ledger_path(segment.ledger),
        population=segment.population,
        user_column=segment.user_column,
        epsilon=tenant.budget.epsilon,
        delta=tenant.life_delta,
        evaluation_users=segment.evaluation_users,
        marks=marks,
        account_marks=account_marks,
        new=False,
    )


def open_behind(directory: TenantDirectory, segment: SegmentFile, registry: Registry | None) -> Ledger:
    """Open the ledger of a directory to write lost entries off, although it is known to be behind.

    Args:
        directory: The tenant's.
        segment: What join froze.
        registry: See `claim_population`.

    Returns:
        The ledger; what it calls missing is what the server, the outbox or the marks have shown to be.

    Raises:
        ConfigError: It is missing, cannot be opened, or another process writes to it.
    """
    tenant, account = directory.read_tenant_file(), None if registry is None else registry.marks
    ledger = open_frozen_ledger(directory, segment, tenant, marks=None, account_marks=None)
    try:
        with suppress(LedgerBehindError):
            ledger.keep_marks(*high_waters(segment.population, directory.marks, account))
    except BaseException:
        ledger.close()
        raise
    return ledger


def read_agreement(directory: TenantDirectory) -> Agreement:
    """Read what was agreed, and check that nothing has moved since.

    Args:
        directory: The tenant's.

    Returns:
        The agreement.

    Raises:
        ConfigError: The tenant has not joined, the card or the tenant file has changed since, or the ledger lies inside
            the directory.
    """
    invite, tenant = directory.read_invite(), directory.read_tenant_file()
    card, segment = read_agreed(directory)
    directory.ledger_path(segment.ledger)
    again = f"run `flower-client join --dir {directory.root}` again"
    if invite.card_hash != card.hash:
        raise ConfigError(f"the newest invite has another federation card than the one agreed to; {again}.")
    for name, agreed, now in _frozen_values(segment, tenant):
        if agreed != now:
            raise ConfigError(
                f"tenant.toml: {name} is {now}, and {agreed} was frozen at join; put it back, or {again}."
            )
    return Agreement(invite, card, tenant, segment)


def read_agreed(directory: TenantDirectory) -> tuple[FederationCard, SegmentFile]:
    """Read the card that was agreed to, and what join froze; all that using an adapter here needs.

    Args:
        directory: The tenant's.

    Returns:
        Both.

    Raises:
        ConfigError: The tenant has not joined, or the card has changed since.
    """
    segment, card = directory.read_segment(), directory.read_agreed_card()
    if card is None or card.hash != segment.plan.card_hash:
        raise ConfigError(
            f"{directory.card}: is not the card that was agreed to; run `flower-client join --dir {directory.root}` "
            "again."
        )
    return card, segment


def claim_population(directory: TenantDirectory, tenant: TenantFile, registry: Registry | None) -> tuple[Claim, bool]:
    """What the tenant file says of its users, where nothing speaks against it. Writes nothing.

    Args:
        directory: The tenant's.
        tenant: The tenant file.
        registry: What other directories have joined for; None for rehearsals, which make throw-away copies.

    Returns:
        The claim, and whether a ledger was made for the population before, so that it must be there.

    Raises:
        ConfigError: The ledger lies inside the directory, is at another place than before, is gone, would be a second
            one for the same users, or would count by another column than before.
    """
    population = tenant.population
    path = directory.ledger_of(tenant)
    claim = Claim.of(tenant, directory.root, path)
    account = None if registry is None else registry.marks
    known = any(marks.exists() for marks in high_waters(population.name, directory.marks, account))
    if directory.segment.exists():
        old = directory.read_segment()
        if old.population == population.name:
            known = True
            if directory.ledger_path(old.ledger) != path:
                raise ConfigError(
                    f"tenant.toml: population '{population.name}' has its ledger at {old.ledger}, frozen at join; "
                    "it cannot be at another place."
                )
            if old.user_column != tenant.columns.user:
                raise other_user_column("tenant.toml", population.name, tenant.columns.user, old.user_column)
    if registry is not None and registry.knows(claim):
        known = True
    if known and not path.exists():
        raise missing_ledger(path, population.name)
    return claim, known


def claim_sources(directory: TenantDirectory, tenant: TenantFile, registry: Registry) -> None:
    """Register where the users' data comes from now: tenant.toml may have been edited since join, or a link may lead
    elsewhere, and what is read without being registered could be another population's the next day.

    Args:
        directory: The tenant's.
        tenant: The tenant file.
        registry: The user's.

    Raises:
        ConfigError: A source is another population's, or the registry cannot be written.
    """
    registry.claim(Claim.of(tenant, directory.root, directory.ledger_of(tenant)))


def agree(
    directory: TenantDirectory,
    *,
    invite: Invite,
    card: FederationCard,
    tenant: TenantFile,
    plan: SegmentPlan,
    registry: Registry | None,
    split_key: bytes | None = None,
) -> tuple[Segment, Path]:
    """Open the ledger's segment, freeze the settings and write the enrolment.

    Doing it again with the same files changes nothing and charges nothing. A ledger is made only for a population that
    never had one: where the directory or the registry names one that is gone, a new one would be a new budget.

    Args:
        directory: The tenant's.
        invite: The newest.
        card: Of the invite.
        tenant: The tenant file.
        plan: From `plan_segment`.
        registry: See `claim_population`; the command line always gives the user's.
        split_key: See `Ledger.open`; no command of the client's gives one.

    Returns:
        The segment, and the file to send to the operator.

    Raises:
        BudgetRefusal: The share does not fit into what is left of the life's budget.
        ConfigError: The ledger cannot be opened; or see `claim_population`.
        LedgerBehindError: The ledger is an older copy.
    """
    population = tenant.population
    with registry.joining() if registry is not None else nullcontext():
        claim, known = claim_population(directory, tenant, registry)
        with Ledger.open(
            claim.ledger,
            population=population.name,
            user_column=tenant.columns.user,
            epsilon=tenant.budget.epsilon,
            delta=tenant.life_delta,
            evaluation_users=tenant.privacy.evaluation_users,
            split_key=split_key,
            marks=directory.marks,
            account_marks=None if registry is None else registry.marks,
            new=not known,
        ) as ledger:
            if registry is not None:
                registry.check_segments(claim, ledger.segments(), plan)
            segment = ledger.open_segment(plan)
        if registry is not None:
            registry.add(claim, plan)
    frozen = SegmentFile(
        population=population.name,
        user_column=tenant.columns.user,
        ledger=population.ledger or default_ledger(population.name),
        declared_users=population.declared_users,
        evaluation_users=tenant.privacy.evaluation_users,
        plan=segment.plan,
    )
    write_private(directory.card, card.canonical())
    write_model(directory.segment, frozen)
    directory.keep_invite(invite, agreed=True)
    enrolment = write_enrolment(
        directory,
        tenant=invite.tenant,
        card_hash=card.hash,
        declared_users=population.declared_users,
        promise=PrivacyLoss(segment.plan.epsilon, segment.plan.delta),
    )
    return segment, enrolment


def card_text(card: FederationCard, agreed: FederationCard | None) -> str:
    """The card for a person; where another one was agreed to before, only what has changed.

    Args:
        card: The new one.
        agreed: The old one, None before the first agreement.

    Returns:
        Lines of `key = value`.
    """
    new = _lines(card)
    if agreed is None:
        return "\n".join([f"Federation card {card.hash}:", *(f"  {line}" for line in new)])
    if agreed.hash == card.hash:
        return f"Federation card {card.hash}: unchanged since you agreed to it."
    changed = [
        f"{line[0]} {line[1:]}"
        for line in difflib.unified_diff(_lines(agreed), new, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    head = f"Federation card {card.hash}: changed since you agreed to {agreed.hash[:12]}... (- old, + new):"
    return "\n".join([head, *(f"  {line}" for line in changed)])


def _lines(card: FederationCard) -> list[str]:
    lines: list[str] = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for place, inner in enumerate(value, start=1):
                walk(f"{prefix}[{place}]", inner)
        else:
            lines.append(f"{prefix} = {printable(json.dumps(value, ensure_ascii=False))}")

    walk("", card.model_dump(mode="json"))
    return lines


def _frozen_values(segment: SegmentFile, tenant: TenantFile) -> list[tuple[str, object, object]]:
    plan, privacy, population = segment.plan, tenant.privacy, tenant.population
    return [
        ("population.name", segment.population, population.name),
        ("columns.user", segment.user_column, tenant.columns.user),
        ("population.ledger", segment.ledger, population.ledger or default_ledger(population.name)),
        ("population.declared_users", segment.declared_users, population.declared_users),
        ("run.epsilon", plan.epsilon, tenant.run.epsilon),
        ("run.delta", plan.delta, tenant.run_delta),
        ("privacy.sample_rate", plan.sample_rate, privacy.sample_rate),
        ("privacy.clip_norm", plan.clip_norm, privacy.clip_norm),
        ("privacy.records_per_user", plan.records_per_user, privacy.records_per_user),
        ("privacy.evaluation_users", segment.evaluation_users, privacy.evaluation_users),
    ]
