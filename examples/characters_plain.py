"""A small GPT on the text of Python's own manual, byte by byte, as one trains it with PyTorch alone."""

import argparse
import math
import pydoc_data.topics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LENGTH, DIM = 64, 64


class CharacterModel(nn.Module):
    """A causal Transformer over bytes; the output shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, DIM)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, DIM))
        layer = nn.TransformerEncoderLayer(DIM, 4, 4 * DIM, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(DIM, 256, bias=False)
        self.embedding.weight = self.output.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Scores [B, LENGTH, 256] of the byte that follows each of text [B, LENGTH] int64."""
        hidden = self.layers(self.embedding(text) + self.position, mask=self.mask, is_causal=True)
        scores: torch.Tensor = self.output(hidden)
        return scores


def corpus(parts: int) -> tuple[TensorDataset, torch.Tensor]:
    """Pieces of the text, one in `parts` of them, and the last tenth to be held out."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    pieces = torch.tensor(list(text), dtype=torch.int64)[: len(text) // (LENGTH + 1) * (LENGTH + 1)].view(
        -1, LENGTH + 1
    )
    pieces = pieces[::parts]
    return TensorDataset(pieces[: -len(pieces) // 10]), pieces[-len(pieces) // 10 :]


def loss_of(model: nn.Module, pieces: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood, in nats, of a piece's bytes given what is before."""
    pieces = pieces.to(next(model.parameters()).device)
    return nn.functional.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def main() -> None:
    """Train, and print how well the model predicts text that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--parts", type=int, default=1, help="take one in so many pieces of the text")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train, held_out = corpus(arguments.parts)
    loader = DataLoader(train, batch_size=16, shuffle=True, drop_last=True)
    model = CharacterModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs * len(loader))
    for _ in range(arguments.epochs):
        for (pieces,) in loader:
            loss = loss_of(model, pieces)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    with torch.no_grad():
        score = loss_of(model, held_out).item() / math.log(2)
    print(f"{score:.3f} bits per byte")


if __name__ == "__main__":
    main()
