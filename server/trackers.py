"""Where figures of a run are written for people to look at: TensorBoard, MLflow, Weights & Biases, or nowhere.

    tensorboard   FOLDER/RUN/events.out.tfevents.*   `tensorboard --logdir FOLDER`
    mlflow        FOLDER/mlflow/                      MLflow's local file store
    wandb         FOLDER/wandb/offline-run-*/         `wandb sync` sends it, if a person asks for that

Everything is a file in the folder and nothing else: no library is given a server's address, telemetry is off
(`fedprofile.common.environment`), and none of them looks at the machine, the user, the command line, the console, git
or the program's text. The libraries are extras and imported when a tracker is opened.
"""

import fcntl
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time as clock
from typing import Literal, Protocol

from fedprofile.common.config import Frozen
from fedprofile.common.errors import ConfigError

Figures = Mapping[tuple[str, ...], float]


class TrackingSpec(Frozen):
    """`[tracking]` of `server.toml` and of an experiment."""

    kind: Literal["tensorboard", "mlflow", "wandb", "none"] = "tensorboard"
    folder: Path = Path("tracking")
    """Within the server's directory, or within the folder of the experiment's results; or an absolute path."""


class Tracker(Protocol):
    """Takes the figures of one run."""

    def note(self, name: str, text: str) -> None:
        """Something that holds for the whole run; said again, it replaces what was said."""

    def log(self, step: int, time: float, figures: Figures) -> None:
        """Figures of one moment; all that a crash of the machine may lose is the newest.

        Args:
            step: The round.
            time: Seconds since 1970.
            figures: By the parts of their names.
        """

    def close(self) -> None:
        """The run is over."""


def usable(spec: TrackingSpec, say: Callable[[str], None]) -> TrackingSpec:
    """Whether what is asked for can be done, before anything is run.

    Args:
        spec: What the file says.
        say: Takes a plain line.

    Returns:
        `spec`; of kind "none" where nobody asked for TensorBoard and it is not installed.

    Raises:
        ConfigError: The library that the file names is not installed.
    """
    if spec.kind == "none" or _installed(spec.kind):
        return spec
    extra = f"run `pip install 'fedprofile[{spec.kind}]'`, or set tracking.kind = \"none\""
    if "kind" in spec.model_fields_set:
        raise ConfigError(f"tracking.kind='{spec.kind}' is not installed; {extra}.")
    say(f"no tracking: TensorBoard is not installed; {extra}.")
    return TrackingSpec(kind="none")


def open_tracker(spec: TrackingSpec, folder: Path, *, title: str, run: str) -> Tracker:
    """Begin a run.

    Args:
        spec: As `usable` gave it.
        folder: What `spec.folder` is relative to.
        title: Of what belongs together: the federation's or the experiment's name.
        run: The run's name.

    Returns:
        The tracker; close it.

    Raises:
        ConfigError: The folder cannot be made.
    """
    if spec.kind == "none":
        return NoTracker()
    within = folder / spec.folder
    try:
        within.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"tracking.folder='{within}': cannot be made ({error.strerror}); name another.") from error
    match spec.kind:
        case "tensorboard":
            return _TensorBoard(within, run)
        case "mlflow":
            return _MLflow(within / "mlflow", title, run)
        case "wandb":
            return _WandB(within, title, run)


class NoTracker:
    """Keeps nothing."""

    def note(self, name: str, text: str) -> None:
        """See `Tracker`."""

    def log(self, step: int, time: float, figures: Figures) -> None:
        """See `Tracker`."""

    def close(self) -> None:
        """See `Tracker`."""


class _TensorBoard:
    def __init__(self, folder: Path, run: str) -> None:
        # TensorBoard's own writer: torch's brings all of torch into a server that needs none of it.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = _new_folder(folder, run)
        self._writer = EventFileWriter(str(self._folder))

    def note(self, name: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        size = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=size)
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._add(clock(), 0, tag=f"{name}/text_summary", metadata=plugin, tensor=tensor)

    def log(self, step: int, time: float, figures: Figures) -> None:
        for name, value in figures.items():
            self._add(time, step, tag="/".join(name), simple_value=value)
        self._writer.flush()

    def _add(self, time: float, step: int, **value: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value)])
        self._writer.add_event(Event(wall_time=time, step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()
        # The file is named after the host, and may be sent to somebody; it is opened by its name again and again
        # before, so that a run that was killed keeps the name.
        [file] = self._folder.iterdir()
        file.rename(self._folder / "events.out.tfevents.fedprofile")


class _MLflow:
    def __init__(self, folder: Path, title: str, run: str) -> None:
        # MLflow's newer stores are databases, which need more than its client; files must be asked for.
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        from mlflow import MlflowClient

        folder.mkdir(exist_ok=True)
        # Cells of `--jobs` open one store at once, which MLflow does not expect.
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._client = MlflowClient(str(folder / "store"))
            found = self._client.get_experiment_by_name(title)
            experiment = self._client.create_experiment(title) if found is None else found.experiment_id
        # The client, unlike `mlflow.start_run`, notes neither user nor program nor commit.
        self._run: str = self._client.create_run(experiment, run_name=run).info.run_id

    def note(self, name: str, text: str) -> None:
        self._client.set_tag(self._run, name, text)

    def log(self, step: int, time: float, figures: Figures) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, _mlflow_name(name), value, int(time * 1000), step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WandB:
    def __init__(self, folder: Path, title: str, run: str) -> None:
        # Its logs would otherwise go to the user's home.
        os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")
        import wandb

        settings = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            host="none",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            mode="offline", dir=str(folder), project=title, name=run, settings=settings, reinit="create_new"
        )
        self._run.define_metric("*", step_metric="round")

    def note(self, name: str, text: str) -> None:
        self._run.config.update({name: text}, allow_val_change=True)

    def log(self, step: int, time: float, figures: Figures) -> None:
        self._run.log({"round": step, "started": time, **{"/".join(name): value for name, value in figures.items()}})

    def close(self) -> None:
        self._run.finish()


def _installed(package: str) -> bool:
    """Whether a package is there; a folder of the same name, such as W&B leaves where it runs, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def _new_folder(folder: Path, name: str) -> Path:
    """A folder of that name, or of the first of name-2, name-3, ... that is not there."""
    number, made = 1, folder / name
    while True:
        try:
            made.mkdir()
            return made
        except FileExistsError:
            number += 1
            made = folder / f"{name}-{number}"


def _mlflow_name(parts: tuple[str, ...]) -> str:
    """A name as MLflow takes it, as a path; other characters, the space too, by their number between spaces.

    >>> _mlflow_name(("evaluate", "accuracy:18+", "low"))
    'evaluate/accuracy:18 2b /low'
    """
    return "/".join(re.sub(r"[^\w.:-]", lambda found: f" {ord(found[0]):x} ", part) for part in parts)
