"""The training loop, its exchanges (what a mode is), checkpoints and records."""
