"""What runs at a tenant: reading its data, private training, the ledger, and the conversation with the server."""

# First of all, before anything below imports Flower, torch or transformers.
from fedprofile.common import environment as environment
