"""What the server, the client and the simulations share: the contract between them and nothing else."""

# First of all, before anything below imports Flower, torch or transformers.
from fedprofile.common import environment as environment
