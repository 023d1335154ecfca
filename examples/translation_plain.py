"""A translation model of this library on a corpus that `hpcasync data prepare` made, with a loop of PyTorch alone."""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from hpcasync.config.model import ModelConfig
from hpcasync.data.batches import BatchPlan
from hpcasync.data.collate import Batch, collate
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.build import build_model
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.search import Searcher, SearchSettings

SIZES = {"dim": 64, "ffn_dim": 256, "heads": 4, "encoder_layers": 2, "decoder_layers": 2, "max_length": 128}


class Batches(Dataset[Batch]):
    """The batches of a corpus: sentences of similar length, so many tokens together."""

    def __init__(self, corpus: PreparedCorpus, batch_tokens: int) -> None:
        vocabularies = corpus.source_vocabulary, corpus.target_vocabulary
        self._plan = BatchPlan(corpus.train, *vocabularies, batch_tokens=batch_tokens, seed=1)

    def __len__(self) -> int:
        return self._plan.num_batches()

    def __getitem__(self, index: int) -> Batch:
        return self._plan.batch(index)


def only(batches: list[Batch]) -> Batch:
    """What DataLoader is to make of a batch of one."""
    return batches[0]


def held_out(corpus: PreparedCorpus, size: int) -> tuple[list[str], Batch]:
    """Sentences of the validation text, and what they are as a batch."""
    texts = [side[:size] for side in corpus.raw("valid")]
    vocabularies = corpus.source_vocabulary, corpus.target_vocabulary
    sides = [[vocabulary.encode(line) for line in side] for side, vocabulary in zip(texts, vocabularies, strict=True)]
    return texts[0], collate(sides[0], sides[1], *vocabularies)


def loss_of(model: TranslationModel, batch: Batch, smoothing: float) -> torch.Tensor:
    """Mean over the target tokens, in nats."""
    batch = batch.to(next(model.parameters()).device)
    loss, _ = model.summed_loss(batch.source, batch.target_input, batch.target_output, smoothing)
    return loss / batch.num_target_tokens


def main() -> None:
    """Train, and print how well the model predicts translations that it has not seen, and one of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    corpus = PreparedCorpus.open(arguments.corpus)
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    loader = DataLoader(Batches(corpus, arguments.batch_tokens), batch_size=1, shuffle=True, collate_fn=only)
    model = build_model(ModelConfig.model_validate(SIZES), len(source), len(target), source.pad_id, target.pad_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=arguments.epochs * len(loader))
    for _ in range(arguments.epochs):
        for batch in loader:
            loss = loss_of(model, batch, smoothing=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    model.eval()
    sentences, batch = held_out(corpus, 200)
    with torch.no_grad():
        score = loss_of(model, batch, smoothing=0.0).item()
    searcher = Searcher(model, source, target, SearchSettings(), max_length=SIZES["max_length"])
    print(f"{score:.3f} nats per token; {sentences[0]!r} is {searcher.translate(sentences[:1])[0][0].text!r}")


if __name__ == "__main__":
    main()
