"""CTranslate2's format, by its own specification classes."""

from pathlib import Path

import numpy as np
from ctranslate2.specs import LayerSpec, TransformerSpec
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import Activation, LayerNormSpec, LinearSpec
from ctranslate2.specs.transformer_spec import FeedForwardSpec
from torch import Tensor

from hpcasync.export.parts import ExportedModel


def write(exported: ExportedModel, directory: Path) -> None:
    """Write a model directory for `ctranslate2.Translator`, with the SentencePiece models in it."""
    config = exported.trained.config.model
    layers = (config.encoder_layers, config.decoder_layers)
    spec = TransformerSpec.from_config(layers, config.heads, pre_norm=exported.is_pre_norm, activation=Activation.RELU)
    for stack, stack_spec in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        stack_spec.position_encodings.encodings = exported.model.positions.table.cpu().numpy()
        for index, layer in enumerate(stack_spec.layer):
            _set_layer(layer, exported.parts, f"{stack}.{index}")
        if exported.is_pre_norm:
            _set_norm(stack_spec.layer_norm, exported.parts, f"{stack}.norm")
    spec.decoder.start_from_zero_embedding = config.decoder_start == "zero"
    # Equal matrices are written once.
    source, target, output = (embedding.numpy() for embedding in exported.embeddings())
    spec.encoder.embeddings[0].weight = source
    spec.decoder.embeddings.weight = target
    spec.decoder.projection.weight = output
    spec.decoder.projection.bias = np.zeros(len(output), np.float32)
    spec.register_source_vocabulary(exported.source_pieces)
    spec.register_target_vocabulary(exported.target_pieces)
    target_vocabulary = exported.trained.target_vocabulary
    spec.config.bos_token = spec.config.decoder_start_token = exported.target_pieces[target_vocabulary.bos_id]
    spec.config.eos_token = exported.target_pieces[target_vocabulary.eos_id]
    spec.config.unk_token = exported.target_pieces[target_vocabulary.unk_id]
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = exported.layer_norm_epsilon
    spec.validate()
    spec.optimize()
    spec.save(str(directory))
    exported.copy_vocabularies(directory)


def _set_layer(layer: LayerSpec, parts: dict[str, Tensor], name: str) -> None:
    _set_attention(layer.self_attention, parts, f"{name}.self", (("query", "key", "value"), ("outer",)))
    if hasattr(layer, "attention"):
        _set_attention(layer.attention, parts, f"{name}.cross", (("query",), ("key", "value"), ("outer",)))
    feed_forward: FeedForwardSpec = layer.ffn
    _set_linear(feed_forward.linear_0, parts, f"{name}.ffn", ("inner",))
    _set_linear(feed_forward.linear_1, parts, f"{name}.ffn", ("outer",))
    _set_norm(feed_forward.layer_norm, parts, f"{name}.ffn.norm")


def _set_attention(
    spec: MultiHeadAttentionSpec, parts: dict[str, Tensor], name: str, fused: tuple[tuple[str, ...], ...]
) -> None:
    for linear, projections in zip(spec.linear, fused, strict=True):
        _set_linear(linear, parts, name, projections)
    _set_norm(spec.layer_norm, parts, f"{name}.norm")


def _set_linear(spec: LinearSpec, parts: dict[str, Tensor], name: str, projections: tuple[str, ...]) -> None:
    spec.weight = np.concatenate([parts[f"{name}.{projection}.weight"].numpy() for projection in projections])
    spec.bias = np.concatenate([parts[f"{name}.{projection}.bias"].numpy() for projection in projections])


def _set_norm(spec: LayerNormSpec, parts: dict[str, Tensor], name: str) -> None:
    spec.gamma, spec.beta = parts[f"{name}.weight"].numpy(), parts[f"{name}.bias"].numpy()
