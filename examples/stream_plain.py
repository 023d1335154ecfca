"""A character model on text that comes as a stream, the average of its parameters kept, with PyTorch alone."""

import argparse
import math
import pydoc_data.topics
import random
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

LENGTH, DIM = 128, 96


class CharacterModel(nn.Module):
    """A small causal Transformer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, DIM)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, DIM))
        layer = nn.TransformerEncoderLayer(DIM, 4, 4 * DIM, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(DIM, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Mean negative log likelihood, in nats, of text[:, 1:] given what is before; text [B, LENGTH + 1] int64."""
        text = text.to(self.position.device)
        hidden = self.embedding(text[:, :-1]) + self.position
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        return nn.functional.cross_entropy(self.output(hidden).flatten(0, 1), text[:, 1:].flatten())


class Pieces(IterableDataset[torch.Tensor]):
    """Pieces of a text, one after the other, as they come out of a buffer in which they are shuffled."""

    def __init__(self, text: torch.Tensor) -> None:
        self._text = text

    def __iter__(self) -> Iterator[torch.Tensor]:
        buffer: list[torch.Tensor] = []
        for piece in self._text.unfold(0, LENGTH + 1, LENGTH):
            buffer.append(piece)
            if len(buffer) == 256:
                yield buffer.pop(random.randrange(256))
        random.shuffle(buffer)
        yield from buffer


def corpus(parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The text of Python's own manual as bytes, cut to a part of it; the last tenth is held out."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    data = torch.tensor(list(text[: len(text) // parts]), dtype=torch.int64)
    return data[: -len(data) // 10], data[-len(data) // 10 :]


def main() -> None:
    """Train, and print how well the averaged model predicts text that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--parts", type=int, default=1, help="take the first of so many parts of the text")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    train, held_out = corpus(arguments.parts)
    loader = DataLoader(Pieces(train), batch_size=16)
    model = CharacterModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    for _ in range(arguments.epochs):
        for text in loader:
            loss = model(text)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
    with torch.no_grad():
        score = average(held_out.unfold(0, LENGTH + 1, LENGTH)[:256]).item() / math.log(2)
    print(f"{score:.3f} bits per byte")


if __name__ == "__main__":
    main()
