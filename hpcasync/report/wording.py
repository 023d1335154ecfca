"""Settings and ends of runs in words: a reader of a report need not know the configuration's keys."""

import re
from typing import Any

# What a number counts.
_COUNTED = {
    "workers": ("worker", "workers"),
    "roles.servers": ("server", "servers"),
    "accumulate.local": ("batch per push", "batches per push"),
    "accumulate.global": ("push per update", "pushes per update"),
    "data.batch_tokens": ("token per batch", "tokens per batch"),
    "model.encoder_layers": ("encoder layer", "encoder layers"),
    "model.decoder_layers": ("decoder layer", "decoder layers"),
    "model.heads": ("head", "heads"),
    "exchange.slots": ("slot per worker", "slots per worker"),
    "stop.updates": ("update", "updates"),
    "stop.epochs": ("epoch", "epochs"),
    "stop.tokens": ("target token", "target tokens"),
    "stop.seconds": ("second of training", "seconds of training"),
}
_PHRASES = {
    "precision": "{}",
    "model.architecture": "{}",
    "model.preset": "{} model",
    "optimizer.name": "{}",
    "schedule.name": "{} schedule",
    "schedule.unit": "schedule by {}",
    "schedule.total": "schedule of {}",
    "data.path": "corpus {}",
    "exchange.gradients": "gradients as {}",
    "exchange.parameters": "parameters as {}",
    "exchange.overlap": "overlap {}",
    "staleness.limit": "staleness limit {}",
    "staleness.policy": "stale gradients {}",
    "staleness.compensation": "delay compensation {}",
    "stop.patience": "patience {}",
    "validation.every": "validation every {}",
    "validation.metric": "best by {}",
    "straggler.worker": "slow worker {}",
}
_ENDS = (
    (r"stop\.updates=(\d+) reached", "after {} updates"),
    (r"stop\.tokens=(\d+) reached", "after {} target tokens"),
    (r"stop\.seconds=([\d.e+]+) reached", "after {} s of training"),
    (r"stop\.patience=(\d+) validations without improvement", "after {} validations without improvement"),
)


def setting_words(key: str, value: Any) -> str:
    """A setting as a reader says it: `150 seconds of training` for stop.seconds=150."""
    name = key.rpartition(".")[2].replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    phrase = _PHRASES.get(key, f"{name} {{}}")
    if value is None:
        return f"no {phrase.format('').strip()}"
    if key in _COUNTED:
        one, many = _COUNTED[key]
        if not isinstance(value, int | float):
            return f"{many} {value}"
        number = f"{value:,.0f}" if value % 1 == 0 else f"{value:g}"
        return f"{number} {one if value == 1 else many}"
    return phrase.format(value)


def end_words(reason: str) -> str:
    """Why a run has ended, without the keys that said so."""
    for pattern, words in _ENDS:
        if found := re.fullmatch(pattern, reason):
            return words.format(f"{float(found[1]):,.0f}")
    return reason
