"""A tiny BERT that tells which sequences hold many small numbers, trained by Hugging Face's Trainer."""

import argparse

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """Numbers below 30; the label is 1 where more than four of sixteen are below 10."""

    def __init__(self, size: int, seed: int) -> None:
        self.words = torch.randint(2, 30, (size, 16), generator=torch.Generator().manual_seed(seed))
        self.labels = ((self.words < 10).sum(1) > 4).long()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words[index], "labels": self.labels[index]}


def main() -> None:
    """Train, and print what the model makes of sequences that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", default="runs/trainer")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=16, **SIZES))
    train, held_out = Sequences(2048, 1), Sequences(512, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs * 64)
    options = TrainingArguments(
        arguments.run,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=32,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, options, train_dataset=train, optimizers=(optimizer, scheduler))
    trainer.train()
    model.eval()
    with torch.no_grad():
        right = (model(held_out.words.to(model.device)).logits.argmax(1).cpu() == held_out.labels).float().mean()
    print(f"accuracy {right:.4f}")


if __name__ == "__main__":
    main()
