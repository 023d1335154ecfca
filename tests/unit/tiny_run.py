"""A run directory as `hpcasync train` leaves it, with a small model that has learned to replace words."""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from hpcasync.config.schema import parse_config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.prepare import PrepareOptions, prepare
from hpcasync.data.subwords import SubwordOptions
from hpcasync.nmt.build import build_model
from hpcasync.nmt.model import TranslationModel

WORDS = {"the": "der", "dog": "Hund", "cat": "Kater", "sees": "sieht", "likes": "mag", "old": "alte", "and": "und"}
UPDATES = (5, 60, 250)  # versions of the snapshots
NAMES = tuple(f"u{updates:08d}" for updates in UPDATES)


@dataclass(frozen=True)
class TinyRun:
    """Paths of the run and its corpus; `best` names the last snapshot."""

    run_dir: Path
    corpus: Path


def translation_of(sentence: str) -> str:
    """What the model has learned."""
    return " ".join(WORDS[word] for word in sentence.split())


def make_tiny_run(directory: Path, **model_values: str) -> TinyRun:
    """Prepare the corpus and train a model with these settings, in a few seconds."""
    corpus = _make_corpus(directory)
    values = {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    model_config = {**values, "max_length": 64, **model_values}
    config = parse_config({"data": {"path": str(corpus.path)}, "model": model_config, "stop": {"updates": 1}}, "test")
    run_dir = directory / "run"
    (run_dir / "snapshots").mkdir(parents=True)
    config.save(run_dir / "config.yaml")
    for side in ("source", "target"):
        shutil.copyfile(corpus.path / f"{side}.spm", run_dir / f"{side}.spm")
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one only slows down a model as small as this, on a busy machine tenfold
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
        _train(model, BatchPlan(corpus.train, source, target, batch_tokens=500, seed=1), run_dir)
    torch.set_num_threads(threads)
    for pointer in ("best", "last"):
        (run_dir / pointer).write_text(f"snapshots/{NAMES[-1]}\n")
    return TinyRun(run_dir, corpus.path)


def all_sentences() -> list[str]:
    """What there is to translate."""
    subjects = [f"the {noun}" for noun in ("dog", "cat", "old dog", "old cat")]
    clauses = [f"{a} {verb} {b}" for a, verb, b in itertools.product(subjects, ("sees", "likes"), subjects)]
    return [*subjects, *clauses, *(f"{a} and {b}" for a, b in itertools.product(subjects, clauses))]


def _make_corpus(directory: Path) -> PreparedCorpus:
    sentences = all_sentences()
    held_out = {"valid": sentences[4::17], "test": sentences[9::17]}
    kept = [s for s in sentences if s not in held_out["valid"] + held_out["test"]]
    for name, lines in {"train": kept, **held_out}.items():
        (directory / f"{name}.en").write_text("".join(f"{line}\n" for line in lines))
        (directory / f"{name}.de").write_text("".join(f"{translation_of(line)}\n" for line in lines))
    options = PrepareOptions(
        subwords=SubwordOptions(vocab_size=50, model_type="bpe"),
        held_out={name: (directory / f"{name}.en", directory / f"{name}.de") for name in held_out},
    )
    prepare(directory / "train.en", directory / "train.de", directory / "corpus", options)
    return PreparedCorpus.open(directory / "corpus")


def _train(model: TranslationModel, plan: BatchPlan, run_dir: Path) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tokens = 0
    for updates in range(1, UPDATES[-1] + 1):
        batch = plan.batch(updates - 1)
        loss, _ = model.summed_loss(batch.source, batch.target_input, batch.target_output, 0.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.006 * min(updates / 20, (UPDATES[-1] - updates + 1) / UPDATES[-1])
        optimizer.zero_grad()
        (loss / batch.num_target_tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tokens += batch.num_target_tokens
        if updates in UPDATES:
            directory = run_dir / "snapshots" / f"u{updates:08d}"
            directory.mkdir()
            save_file({name: p.detach() for name, p in model.named_parameters()}, directory / "parameters.safetensors")
            state = {"version": updates, "num_updates": updates, "target_tokens": tokens, "wall_seconds": updates / 10}
            (directory / "state.json").write_text(json.dumps(state))
