"""Process-wide switches that must be set before Flower, Hugging Face or torch are first imported.

Every entry point imports this module first: Flower's telemetry and update check, Hugging Face's telemetry and
progress bars, and what MLflow and Weights & Biases would send are switched off here and nowhere else, so that no
command calls home. The model hub is asked only where the user allows it (`FEDPROFILE_ALLOW_HUB=1`).
"""

import os

SWITCHES: dict[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
}

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


def prepare_environment() -> None:
    """Set the switches of this process; what it starts inherits them.

    Telemetry is switched off even where the surrounding environment asks for it: what leaves a site is a fixed
    list of message fields, and telemetry is not one of them. Loopback is kept away from proxies, because httpx
    sends even loopback traffic through one where the environment names it.
    """
    os.environ.update(SWITCHES)
    if os.environ.get("FEDPROFILE_ALLOW_HUB") != "1":
        os.environ["HF_HUB_OFFLINE"] = "1"
    for variable in ("NO_PROXY", "no_proxy"):
        names = [name for name in os.environ.get(variable, "").split(",") if name]
        os.environ[variable] = ",".join(dict.fromkeys([*names, *LOOPBACK_NAMES]))


prepare_environment()
