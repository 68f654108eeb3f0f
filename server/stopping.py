"""How a running server is told to end."""

from fedprofile.common.errors import FedprofileError


class ServerStopped(FedprofileError):
    """The server was asked to stop; the round in progress is begun again at the next start."""
