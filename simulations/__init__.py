"""Whole federations on one machine: rehearsals with real processes and in-process comparisons."""

# First of all, before anything below imports Flower, torch or transformers.
from fedprofile.common import environment as environment
