"""`hpcasync export`: a trained model for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcasync.cli.parameters import FILE
from hpcasync.cli.translate import parse_average

if TYPE_CHECKING:
    from hpcasync.export.parts import Format

_FORMATS: "tuple[Format, ...]" = ("ctranslate2", "marian", "huggingface")


@click.command()
@click.argument("model", metavar="MODEL", type=FILE)
@click.option("--format", "form", type=click.Choice(_FORMATS), required=True, help="The program that is to read it.")
@click.option("--out", "directory", type=FILE, required=True, help="Directory to write; appears when it is complete.")
@click.option(
    "--average",
    multiple=True,
    metavar="N|PATH",
    help="Average the last N snapshots up to MODEL; or MODEL with the one at PATH (several: repeat it).",
)
def export(model: Path, form: "Format", directory: Path, average: tuple[str, ...]) -> None:
    """Write MODEL as other programs read it, its SentencePiece models beside it.

    MODEL is what `hpcasync translate` takes: a run directory (its best snapshot), a snapshot in it, or a
    parameters.safetensors file in one. What a format cannot express is refused.
    """
    from hpcasync.export.write import export_model
    from hpcasync.nmt.load import load_model

    num_averaged, average_with = parse_average(average)
    trained = load_model(model, average=num_averaged, average_with=average_with)
    export_model(trained, form, directory)
    size = sum(path.stat().st_size for path in directory.rglob("*"))
    click.echo(f"{directory} ({size / 1e6:.1f} MB, {form}, from {', '.join(map(str, trained.parameter_files))})")
