"""Handwritten digits of 8 by 8 pixels: a small convolutional network, as one trains it with PyTorch alone."""

import argparse

import sklearn.datasets
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 397


class Network(nn.Module):
    """Convolutions with BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores [B, 10] of images [B, 1, 8, 8]."""
        scores: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return scores


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Part of the images that the model recognises."""
    model.eval()
    with torch.no_grad():
        scores = model(images.to(next(model.parameters()).device)).cpu()
    model.train()
    return float((scores.argmax(1) == labels).float().mean())


def main() -> None:
    """Train, and print what the model makes of digits that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    digits = sklearn.datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train = TensorDataset(images[:-HELD_OUT], labels[:-HELD_OUT])
    loader = DataLoader(train, batch_size=32, shuffle=True)
    model = Network()
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": others, "weight_decay": 0.0}], lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=arguments.epochs * len(loader))
    for _ in range(arguments.epochs):
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    print(f"accuracy {accuracy(model, images[-HELD_OUT:], labels[-HELD_OUT:]):.4f}")


if __name__ == "__main__":
    main()
