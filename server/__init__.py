"""What the operator runs: enrolment, rounds, admission, aggregation, checkpoints and export."""

# First of all, before anything below imports Flower, torch or transformers.
from fedprofile.common import environment as environment
