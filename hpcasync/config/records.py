"""The section of the configuration that says what is recorded of a run."""

from typing import Literal

from pydantic import Field

from hpcasync.config.section import Section

Tracker = Literal["tensorboard", "wandb", "mlflow"]


class LoggingConfig(Section):
    """Records of the run."""

    every: int = Field(50, ge=1, description="updates between progress lines")
    trackers: tuple[Tracker, ...] = Field(
        ("tensorboard",),
        description="tensorboard, wandb, mlflow: what shows curves of the run; the last two write into the run "
        "directory, unless WANDB_MODE or MLFLOW_TRACKING_URI is set",
    )
    tensorboard: bool | None = Field(
        None, description="older name: true adds tensorboard to logging.trackers, false takes it out"
    )
    stall: float = Field(
        30,
        ge=0,
        description="seconds of silence, unusual for it too, after which a worker is reported; in sync: of waiting, "
        "after which the ranks are named that all wait for; 0: never",
    )
    ranges: Literal["none", "nvtx", "torch"] = Field(
        "none",
        description="nvtx: the activities of a timeline as ranges for Nsight Systems (a CUDA build of torch); torch: "
        "torch.profiler records some steps of each worker",
    )
    timeline: bool = Field(False, description="write what every rank does when, for the timeline of `hpcasync report`")

    @property
    def chosen_trackers(self) -> tuple[Tracker, ...]:
        """`trackers`, with or without TensorBoard as the older name says."""
        others = tuple(name for name in self.trackers if name != "tensorboard")
        if self.tensorboard is None:
            return self.trackers
        return ("tensorboard", *others) if self.tensorboard else others
