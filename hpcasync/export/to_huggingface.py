"""The format of Hugging Face's transformers, by its own model and tokenizer classes."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from hpcasync.errors import UserError
from hpcasync.export.parts import ExportedModel

_SUBLAYERS = {"self": "self_attn", "cross": "encoder_attn"}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "outer": "out_proj", "norm": "layer_norm"}
_FEED_FORWARD = {"inner": "fc1", "outer": "fc2", "norm": "final_layer_norm"}


def write(exported: ExportedModel, directory: Path) -> None:
    """Write a directory for `MarianMTModel.from_pretrained` and `MarianTokenizer.from_pretrained`."""
    if exported.is_pre_norm:
        raise UserError(
            f"{exported.trained.run_dir}: transformers' MarianMTModel normalises after each sub-layer, this model "
            "before it (model.norm=pre): export it with --format ctranslate2, or train with model.norm=post"
        )
    if exported.model.config.decoder_start == "zero":
        raise UserError(
            f"{exported.trained.run_dir}: the decoder of transformers' MarianMTModel begins with an embedding, this "
            "model's with zeros (model.decoder_start=zero): export it with --format ctranslate2 or marian"
        )
    config = _configuration(exported)
    with torch.device("meta"):
        model = MarianMTModel(config)
    model.load_state_dict(_state(exported), assign=True)
    model.generation_config = _generation(exported)
    # Left out of the file, positions would be drawn by a formula whose frequencies differ a little from ours.
    model._keys_to_ignore_on_save = []
    model.save_pretrained(directory)
    exported.copy_vocabularies(directory)
    _write_tokenizer(exported, directory)


def _configuration(exported: ExportedModel) -> MarianConfig:
    model, vocabulary = exported.trained.config.model, exported.trained.target_vocabulary
    return MarianConfig(
        vocab_size=len(exported.source_pieces),
        decoder_vocab_size=len(exported.target_pieces),
        d_model=model.dim,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        encoder_attention_heads=model.heads,
        decoder_attention_heads=model.heads,
        encoder_ffn_dim=model.ffn_dim,
        decoder_ffn_dim=model.ffn_dim,
        max_position_embeddings=model.max_length,
        activation_function="relu",
        scale_embedding=True,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        share_encoder_decoder_embeddings=model.tie == "all",
        tie_word_embeddings=model.tie != "none",
        pad_token_id=exported.trained.source_vocabulary.pad_id,
        eos_token_id=vocabulary.eos_id,
        bos_token_id=vocabulary.bos_id,
        decoder_start_token_id=vocabulary.bos_id,
        forced_eos_token_id=None,
    )


def _state(exported: ExportedModel) -> dict[str, Tensor]:
    source, target, output = exported.embeddings()
    positions = exported.model.positions.table.cpu()
    state = {
        "model.encoder.embed_tokens.weight": source,
        "model.decoder.embed_tokens.weight": target,
        "model.encoder.embed_positions.weight": positions,
        "model.decoder.embed_positions.weight": positions.clone(),
        "lm_head.weight": output,
        "final_logits_bias": torch.zeros(1, len(output)),
    }
    if exported.trained.config.model.tie == "all":
        state["model.shared.weight"] = source
    return state | {_name_of(name): tensor for name, tensor in exported.parts.items()}


def _name_of(part: str) -> str:
    stack, index, sublayer, projection, kind = part.split(".")
    layer = f"model.{stack}.layers.{index}"
    if sublayer == "ffn":
        return f"{layer}.{_FEED_FORWARD[projection]}.{kind}"
    separator = "_" if projection == "norm" else "."
    return f"{layer}.{_SUBLAYERS[sublayer]}{separator}{_PROJECTIONS[projection]}.{kind}"


def _generation(exported: ExportedModel) -> GenerationConfig:
    """Search as `hpcasync translate` does by default."""
    model, vocabulary = exported.trained.config.model, exported.trained.target_vocabulary
    return GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=5,
        length_penalty=1.0,
        max_length=model.max_length,
        suppress_tokens=[vocabulary.pad_id, vocabulary.bos_id, vocabulary.unk_id],
        pad_token_id=vocabulary.pad_id,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        decoder_start_token_id=vocabulary.bos_id,
    )


def _write_tokenizer(exported: ExportedModel, directory: Path) -> None:
    pieces = {"vocab.json": exported.source_pieces, "target_vocab.json": exported.target_pieces}
    for name, names in pieces.items():
        content = {piece: index for index, piece in enumerate(names)}
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    vocabulary = exported.trained.source_vocabulary
    tokenizer = MarianTokenizer(
        source_spm=str(directory / "source.spm"),
        target_spm=str(directory / "target.spm"),
        vocab=str(directory / "vocab.json"),
        target_vocab_file=str(directory / "target_vocab.json"),
        separate_vocabs=True,
        unk_token=exported.source_pieces[vocabulary.unk_id],
        eos_token=exported.source_pieces[vocabulary.eos_id],
        pad_token=exported.source_pieces[vocabulary.pad_id],
        model_max_length=exported.trained.config.model.max_length,
    )
    tokenizer.save_pretrained(directory)
