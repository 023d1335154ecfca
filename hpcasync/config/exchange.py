"""The section of the configuration that says what travels between workers and servers, and when."""

from typing import Literal

from pydantic import Field, model_validator

from hpcasync.choices import WHOLE_GRADIENT_FORMATS, GradientFormat, ParameterFormat, PullPolicy, WindowKind
from hpcasync.config.section import Section

Pull = Literal["auto", PullPolicy]
Overlap = Literal["none", "push", "full"]


class ExchangeConfig(Section):
    """What a worker does around a push; asynchronous modes only."""

    pull: Pull = Field(
        "auto",
        description="what a worker waits for after a push: nothing; that servers have added it to their sum; that they "
        "have made the update which it completes, too; that it has been applied; auto: added, where Muon's servers sum "
        "several pushes, without overlap and staleness.limit; else handled",
    )
    slots: int = Field(2, ge=1, le=1024, description="gradients of a worker that servers have not read yet, at most")
    gradients: GradientFormat = Field(
        "fp32", description="how gradients travel; topk: the largest elements only, the rest is added to the next push"
    )
    topk: float = Field(0.01, gt=0, le=1, description="part of the elements that topk sends")
    parameters: ParameterFormat = Field("fp32", description="how parameters travel to the workers")
    window: WindowKind = Field(
        "auto",
        description="what gradients and parameters lie in; mapped: memory of the ranks' devices that the others of "
        "their host map; auto: that, where all ranks are on GPUs; else MPI's windows, in host memory",
    )
    host_sums: bool = Field(
        False,
        description="where there are several hosts: gradients of a host are summed there, and only sums travel to the "
        "servers of other hosts, when an update is made; needs a server on every host",
    )
    overlap: Overlap = Field(
        "none",
        description="what runs beside the computation: nothing; pushing the gradient while backward makes it; or the "
        "pull too, which makes gradients one update staler",
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> "ExchangeConfig":
        if self.overlap != "none" and self.gradients in WHOLE_GRADIENT_FORMATS:
            raise ValueError(f"{self.gradients} needs the whole gradient: exchange.overlap must be none")
        if self.host_sums and self.gradients in WHOLE_GRADIENT_FORMATS:
            raise ValueError(f"{self.gradients} sends parts of gradients: exchange.host_sums must be false")
        return self
