"""Whether something simpler than LoRA would do: what a tenant's `check` can say before anything is trained.

Two things can be told without a budget, each by an argument and not by a threshold that was tuned:

    repeated columns   Where the text is made of nothing but columns that are features as well, the text tells nothing
                       that they do not. A DP regression on the columns is then the way to beat.
    few texts          A logit is linear in the pooled text. As long as the frozen base's vectors of the different
                       texts are linearly independent, which they can be as long as there are no more of them than the
                       vectors have values, a linear head gives every text any logit: LoRA reaches no function of these
                       records that the head does not reach alone, and adds trained values that all take noise. The DP
                       linear probe is then the way to beat.

Which way learns more under noise is measured and not argued: see docs/training.md, and `flower-client worth`.

Why it is private: the card is public, and the number of different texts is shown at the tenant with the rest of
`check`, exact, and goes nowhere. Nothing is trained, spent or sent, and no request's answer depends on it.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords


@dataclass(frozen=True)
class Simpler:
    """What `check` says of it.

    Args:
        use: What to compare with first: the DP linear probe, the DP regression on the columns, or None.
        texts: Different texts of the tenant's records, as the model sees them.
        why: A sentence for a person.
    """

    use: Literal["probe", "columns"] | None
    texts: int
    why: str

    def as_dict(self) -> dict[str, str | int | None]:
        """For a machine."""
        return asdict(self)


def find_simpler(card: FederationCard, records: EncodedRecords, hidden_size: int) -> Simpler:
    """Look at a card and a tenant's records.

    Args:
        card: The federation's.
        records: Of the tenant's whole source.
        hidden_size: How many values the base's vector of a text has.

    Returns:
        What to say.
    """
    texts = len({tokens.tobytes() for tokens in records.tokens})
    if card.adapter.method == "head":
        return Simpler(None, texts, "the card trains the head alone already; no LoRA is paid for.")
    # A row's own columns only: an event's are other rows' values.
    if not card.history.event and card.history.columns <= card.features.columns:
        return Simpler(
            "columns",
            texts,
            f"the text repeats columns that are features already ({', '.join(sorted(card.history.columns))}). Ask the "
            "operator for the DP regression on the columns (adapter.method = 'head', adapter.text_scale = 1e-9), and "
            "for LoRA only where a rehearsal shows it to be better.",
        )
    if 0 < texts <= hidden_size:
        return Simpler(
            "probe",
            texts,
            f"your records have {texts} different texts, no more than the {hidden_size} values of the base's vectors: "
            "a linear head can score each of them by itself, and LoRA adds only values that take noise. Ask the "
            "operator for the DP linear probe (adapter.method = 'head') unless other tenants' texts vary more.",
        )
    return Simpler(
        None,
        texts,
        "nothing that your data shows speaks for one; what learns more under noise is measured. A rehearsal tells the "
        "operator, and `flower-client worth` tells you once an adapter has come.",
    )
