"""Marian's format: the arrays of its Transformer in model.npz, with the options that describe it."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor

from hpcasync.errors import UserError
from hpcasync.export.parts import ExportedModel

_SUBLAYERS = {"self": "self", "cross": "context", "ffn": "ffn"}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "outer": "o"}
_FEED_FORWARD = {"inner": "1", "outer": "2"}
_NORM = {"weight": "scale", "bias": "bias"}


def write(exported: ExportedModel, directory: Path) -> None:
    """Write model.npz, vocabularies and decoder.yml, which `marian-decoder -c` takes.

    Raises:
        UserError: the model has what Marian's Transformer has not.
    """
    _check(exported)
    arrays = {_name_of(name): _array(tensor) for name, tensor in exported.parts.items()}
    arrays |= _embeddings(exported)
    # Ended by a zero byte, which readers cut off.
    arrays["special:model.yml"] = np.frombuffer(yaml.safe_dump(_options(exported)).encode() + b"\0", np.int8)
    with (directory / "model.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    exported.copy_vocabularies(directory)
    for side, pieces in (("source", exported.source_pieces), ("target", exported.target_pieces)):
        lines = (f"{_quoted(piece)}: {index}\n" for index, piece in enumerate(pieces))
        (directory / f"{side}.yml").write_text("".join(lines), encoding="utf-8")
    (directory / "decoder.yml").write_text(yaml.safe_dump(_DECODER, sort_keys=False))


# Search as `hpcasync translate` does by default.
_DECODER = {
    "relative-paths": True,
    "models": ["model.npz"],
    "vocabs": ["source.spm", "target.spm"],
    "beam-size": 5,
    "normalize": 1.0,
    "max-length-factor": 2.0,
}


def _check(exported: ExportedModel) -> None:
    run_dir, trained = exported.trained.run_dir, exported.trained
    if exported.is_pre_norm:
        raise UserError(
            f"{run_dir}: Marian's layers that normalise first (--transformer-preprocess n) compute something else than "
            "these (model.norm=pre): export it with --format ctranslate2, or train with model.norm=post"
        )
    if exported.model.config.decoder_start != "zero":
        raise UserError(
            f"{run_dir}: Marian's decoder begins with a vector of zeros, this model's with the embedding of <s> "
            "(model.decoder_start=embedding): train with model.decoder_start=zero, or take --format ctranslate2"
        )
    for vocabulary, pieces in (
        (trained.source_vocabulary, exported.source_pieces),
        (trained.target_vocabulary, exported.target_pieces),
    ):
        if vocabulary.num_added:
            raise UserError(
                f"{run_dir}: {', '.join(pieces[-vocabulary.num_added :])} are not in {vocabulary.path.name}, and "
                "Marian takes pieces from nowhere else: prepare the corpus with vocabularies that `data prepare` trains"
            )


def _name_of(part: str) -> str:
    stack, index, sublayer, projection, kind = part.split(".")
    name = f"{stack}_l{int(index) + 1}_{_SUBLAYERS[sublayer]}"
    if projection == "norm":
        return f"{name}_{'ffn' if sublayer == 'ffn' else 'Wo'}_ln_{_NORM[kind]}"
    names = _FEED_FORWARD if sublayer == "ffn" else _ATTENTION
    return f"{name}_{'W' if kind == 'weight' else 'b'}{names[projection]}"


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """Marian multiplies by matrices from the right; its vectors are matrices of one row."""
    array: NDArray[np.float32] = tensor.numpy()
    return np.ascontiguousarray(array.T) if array.ndim == 2 else array[None]


def _embeddings(exported: ExportedModel) -> dict[str, NDArray[np.float32]]:
    source, target, output = (embedding.numpy() for embedding in exported.embeddings())
    tie = exported.model.config.tie
    arrays = {"Wemb": source} if tie == "all" else {"encoder_Wemb": source, "decoder_Wemb": target}
    if tie == "none":
        arrays["decoder_ff_logit_out_W"] = np.ascontiguousarray(output.T)
    return arrays | {"decoder_ff_logit_out_b": np.zeros((1, len(output)), np.float32)}


def _options(exported: ExportedModel) -> dict[str, Any]:
    config = exported.model.config
    return {
        "type": "transformer",
        "version": "v1.12.0",
        "dim-vocabs": [len(exported.source_pieces), len(exported.target_pieces)],
        "dim-emb": config.dim,
        "enc-depth": config.encoder_layers,
        "dec-depth": config.decoder_layers,
        "max-length": config.max_length,
        "input-types": [],
        "tied-embeddings": config.tie == "target",
        "tied-embeddings-src": False,
        "tied-embeddings-all": config.tie == "all",
        "transformer-heads": config.heads,
        "transformer-dim-ffn": config.ffn_dim,
        "transformer-decoder-dim-ffn": config.ffn_dim,
        "transformer-ffn-depth": 2,
        "transformer-decoder-ffn-depth": 0,
        "transformer-ffn-activation": "relu",
        "transformer-preprocess": "",
        "transformer-postprocess": "dan",
        "transformer-postprocess-top": "",
        "transformer-postprocess-emb": "d",
        "transformer-decoder-autoreg": "self-attention",
        "transformer-dim-aan": 2048,
        "transformer-aan-depth": 2,
        "transformer-aan-activation": "swish",
        "transformer-aan-nogate": False,
        "transformer-guided-alignment-layer": "last",
        "transformer-no-projection": False,
        "transformer-no-bias": False,
        "transformer-no-affine": False,
        "transformer-pool": False,
        "transformer-rnn-projection": False,
        "transformer-tied-layers": [],
        "transformer-train-position-embeddings": False,
        "transformer-depth-scaling": False,
        "output-omit-bias": False,
        "lemma-dim-emb": 0,
        "lemma-dependency": "",
        "factors-combine": "sum",
        "factors-dim-emb": 0,
        "bert-train-type-embeddings": True,
        "bert-type-vocab-size": 2,
        "ulr": False,
        "ulr-dim-emb": 0,
        "skip": False,
        "layer-normalization": False,
        "right-left": False,
    }


def _quoted(piece: str) -> str:
    escaped = piece.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
