"""A federation's model at the tenant, loaded once and asked often: what `predict`, `explain` and `serve` share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.judgement import Judgement
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import LoadedBases, load_model
from fedprofile.common.adapters import arrays_hash
from fedprofile.common.candidates import as_questions, with_candidate
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example, encode
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tasks import RankingTask
from fedprofile.common.tenant import TenantFile


@dataclass(frozen=True)
class Profiler:
    """One federation's model with the adapter in use.

    Args:
        card: The agreed one.
        model: Holds the adapter.
        tokenizer: The base's.
        judgement: The tenant's; None where it has no `[judgement]`.
        round: After which round the adapter was.
        adapter_hash: Of the adapter's arrays.
    """

    card: FederationCard
    model: ProfileModel
    tokenizer: PreTrainedTokenizerBase
    judgement: Judgement | None
    round: int
    adapter_hash: str

    @classmethod
    def open(
        cls, directory: TenantDirectory, card: FederationCard, tenant: TenantFile, loaded: LoadedBases | None = None
    ) -> "Profiler":
        """Load base and adapter.

        Args:
            directory: The tenant's.
            card: The agreed one.
            tenant: The tenant file.
            loaded: Bases to share; see `fedprofile.client.site.load_model`.

        Returns:
            The profiler.

        Raises:
            ConfigError: No adapter has come yet, it or the base is not the one that it was, or `[judgement]` does not
                fit the card.
        """
        adapters = AdapterFolder(directory, card.hash)
        adapters.require()
        judgement = None if tenant.judgement is None else Judgement.of(tenant.judgement, card, directory.root)
        if judgement is not None and judgement.thresholds and tenant.columns.group is None:
            raise ConfigError(
                "judgement.thresholds: go by the group, and columns.group names no column of it; name one, or leave "
                "the thresholds out."
            )
        model, tokenizer = load_model(card, tenant, directory.root, loaded)
        number, arrays = adapters.newest(model.layout())
        model.set_arrays(arrays)
        return cls(card, model, tokenizer, judgement, number, arrays_hash(arrays))

    def scores(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Predict.

        Args:
            examples: n of them; labels are not looked at.

        Returns:
            [n, outputs]; see `fedprofile.common.modeling.head.scores`. Of a ranking the whole catalogue's.
        """
        records = encode(as_questions(examples, self.card.task), self.card, self.tokenizer)
        return self.model.predict(records).reshape(len(examples), len(self.card.task.outputs))

    def scores_of(self, examples: Sequence[Example], output: int) -> NDArray[np.float64]:
        """The scores of one output; of a ranking, at the cost of one candidate and not of the catalogue.

        Args:
            examples: n of them.
            output: Its place in the task's outputs.

        Returns:
            [n].
        """
        task = self.card.task
        if not isinstance(task, RankingTask):
            return self.scores(examples)[:, output]
        rows = [with_candidate(example, task.candidates[output]) for example in examples]
        return self.model.predict(encode(rows, self.card, self.tokenizer))[:, 0]
