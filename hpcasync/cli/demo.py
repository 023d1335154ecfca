"""`hpcasync demo`: both kinds of training on a small corpus, compared."""

from pathlib import Path

import click

from hpcasync.cli.parameters import FILE, Number
from hpcasync.demo.run import DemoPlan, run_demo

# The corpus's name -> its configuration in a checkout, and seconds of training of each of four runs.
_DEMOS = {"embedded": ("configs/demo.yaml", 110.0), "multi30k": ("configs/multi30k.yaml", 600.0)}


@click.command()
@click.option("--data", "corpus", type=click.Choice(sorted(_DEMOS)), default="embedded", show_default=True)
@click.option("--config", type=FILE, help="Training configuration; default: the corpus's in configs/.")
@click.option(
    "--seconds",
    type=Number(0),
    help="Training time of each of the four runs; default: 110 for embedded, 600 for multi30k.",
)
@click.option("--mirror", default="", help="Directory or URL to fetch the corpus from.")
def demo(corpus: str, config: Path | None, seconds: float | None, mirror: str) -> None:
    """Train sync and async-global on two workers, even ones and with one that takes twice as long; translate; print a
    table with the ratio to sync, and write a report page.
    """
    default_config, default_seconds = _DEMOS[corpus]
    run_demo(DemoPlan(corpus, config or Path(default_config), default_seconds if seconds is None else seconds, mirror))
