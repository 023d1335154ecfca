"""`hpcasync data`: fetch, prepare and check corpora."""

import typing
from itertools import chain
from pathlib import Path
from typing import Literal

import click

from hpcasync.cli.cores import usable_cores
from hpcasync.cli.parameters import FILE, THREADS, Count, Number
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.encode import Limits
from hpcasync.data.fetch.corpus import FetchOptions
from hpcasync.data.fetch.mirror import Mirror
from hpcasync.data.fetch.registry import CORPORA
from hpcasync.data.manifest import TEST_SETS
from hpcasync.data.prepare import PrepareOptions
from hpcasync.data.prepare import prepare as prepare_corpus
from hpcasync.data.subwords import Normalization, SubwordOptions
from hpcasync.data.summary import summarise, training_command
from hpcasync.data.text import regular_files

_RULES = typing.get_args(Normalization)


@click.group()
def data() -> None:
    """Fetch and prepare corpora."""


@data.command()
@click.argument("name", type=click.Choice(list(CORPORA)))
@click.argument("directory", metavar="DIR", type=FILE)
@click.option("--target", metavar="CODE", help="Target language (embedded, multi30k): de, the default, or fr.")
@click.option(
    "--pairs",
    "num_pairs",
    default=20_000,
    show_default=True,
    type=Count(min=1),
    help="Training pairs (embedded).",
)
@click.option("--seed", default=1, show_default=True, type=Count(min=0), help="Of the sentences (embedded).")
@click.option("--mirror", metavar="DIR|URL", help="Where to take the files from instead, under their upstream names.")
def fetch(name: str, directory: Path, target: str | None, num_pairs: int, seed: int, mirror: str | None) -> None:
    """Fetch a corpus into DIR; `embedded` is generated and needs no network."""
    options = FetchOptions(target, num_pairs, seed, Mirror.parse(mirror))
    corpus = CORPORA[name](directory, options)
    click.echo(f"Fetched {name} into {directory}. Prepare it with:\n")
    click.echo(corpus.prepare_command(directory / "prepared"))


@data.command()
@click.argument("source", metavar="SRC", type=FILE)
@click.argument("target", metavar="TGT", type=FILE)
@click.option("--out", "directory", type=FILE, required=True, help="Directory to write; appears when it is complete.")
@click.option("--valid", nargs=2, type=FILE, metavar="SRC TGT", help="Validation text, kept as it is.")
@click.option("--test", "tests", nargs=2, multiple=True, type=FILE, metavar="SRC TGT", help="Test text, kept as it is; "
              "several times: test, test2, test3 …")  # fmt: skip
@click.option("--vocab-size", default=8000, show_default=True, type=Count(min=8), help="Pieces.")
@click.option("--model-type", default="unigram", show_default=True, type=click.Choice(["unigram", "bpe"]))
@click.option("--joint/--separate", default=None, help="One vocabulary for both sides (default), or one for each.")
@click.option("--source-model", type=FILE, help="SentencePiece model to use instead of training one.")
@click.option("--target-model", type=FILE, help="The same for the target side; may be the same file.")
@click.option(
    "--character-coverage",
    default=0.99999,
    show_default=True,
    type=Number(0.98, 1.0),
    help="Fraction of the characters that become pieces; the rest is unknown.",
)
@click.option("--normalization", default="nmt_nfkc", show_default=True, type=click.Choice(_RULES),
              help="SentencePiece's rule by which m² becomes m2; identity: text stays as it is.")  # fmt: skip
@click.option("--byte-fallback", is_flag=True, help="Spell unknown characters in bytes (256 of the pieces).")
@click.option(
    "--sample-sentences",
    default=2_000_000,
    show_default=True,
    type=Count(min=1),
    help="Sentences, spread over the corpus, that a vocabulary is trained on.",
)
@click.option("--max-length", default=256, show_default=True, type=Count(min=1), help="Pieces of either side.")
@click.option(
    "--max-ratio",
    default=4.0,
    show_default=True,
    type=Number(min=1.0, can_be_unlimited=True),
    help="Pieces of the longer side over those of the shorter; inf: no limit.",
)
@click.option("--source-language", metavar="CODE", help="Noted in the manifest, for example en.")
@click.option("--target-language", metavar="CODE", help="Noted in the manifest, for example de.")
@click.option("--processes", type=THREADS, help="Processes that encode; default: one for each core.")
@click.option("--overwrite", is_flag=True, help="Replace a prepared corpus that is there.")
def prepare(
    source: Path,
    target: Path,
    directory: Path,
    valid: tuple[Path, Path] | None,
    tests: tuple[tuple[Path, Path], ...],
    vocab_size: int,
    model_type: Literal["unigram", "bpe"],
    joint: bool | None,
    source_model: Path | None,
    target_model: Path | None,
    character_coverage: float,
    normalization: Normalization,
    byte_fallback: bool,
    sample_sentences: int,
    max_length: int,
    max_ratio: float,
    source_language: str | None,
    target_language: str | None,
    processes: int | None,
    overwrite: bool,
) -> None:
    """Make a corpus to train on from the text files SRC and TGT (plain or .gz, one sentence a line).

    One of the files may be - for standard input, any a pipe.
    """
    if len(tests) > len(TEST_SETS):
        raise click.UsageError(f"--test is given {len(tests)} times; {len(TEST_SETS)} is the most")
    with regular_files([source, target, *(valid or ()), *chain.from_iterable(tests)]) as files:
        source, target, *held_out = files
        pairs = list(zip(held_out[::2], held_out[1::2], strict=True))
        names = [*(["valid"] if valid else []), *TEST_SETS]
        options = PrepareOptions(
            subwords=SubwordOptions(
                vocab_size, model_type, character_coverage, byte_fallback, sample_sentences, normalization
            ),
            limits=Limits(max_length, max_ratio),
            held_out=dict(zip(names, pairs, strict=False)),
            joint=joint,
            source_model=source_model,
            target_model=target_model,
            source_language=source_language,
            target_language=target_language,
            num_processes=processes or usable_cores(),
            overwrite=overwrite,
        )
        manifest = prepare_corpus(source, target, directory, options)
    click.echo(summarise(manifest))
    click.echo(f"\nPrepared {directory}. Train on it with:\n\n    {training_command(manifest, directory)}")


@data.command()
@click.argument("directory", metavar="DIR", type=FILE)
def check(directory: Path) -> None:
    """Compare every file of a prepared corpus with its digest, and describe the corpus."""
    corpus = PreparedCorpus.open(directory)
    corpus.verify()
    click.echo(summarise(corpus.manifest))
    click.echo(f"\n{directory}: {len(corpus.manifest.files)} files agree with their digests; corpus {corpus.digest}")
