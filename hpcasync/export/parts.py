"""A Transformer in its parts: one tensor for each projection, under names that all formats are written from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from hpcasync.errors import UserError
from hpcasync.nmt.layers import CrossAttention, DecoderLayer, EncoderLayer, FeedForward, Residual, SelfAttention
from hpcasync.nmt.load import TrainedModel
from hpcasync.nmt.transformer import Transformer

Format = Literal["ctranslate2", "marian", "huggingface"]
_Part = tuple[str, nn.Module | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ExportedModel:
    """What an exporter writes.

    Attributes:
        trained: configuration and vocabularies.
        model: the Transformer.
        parts: float32 on the CPU. STACK.LAYER.SUBLAYER.PROJECTION.weight [out, in] and .bias [out], such as
            `decoder.0.cross.key.weight`; SUBLAYER is self, cross or ffn, PROJECTION query, key, value, outer, or inner,
            outer of ffn; each sub-layer's `norm`; and with pre-norm `encoder.norm`, `decoder.norm`.
        source_pieces, target_pieces: the spelling of each id.
    """

    trained: TrainedModel
    model: Transformer
    parts: dict[str, Tensor]
    source_pieces: list[str]
    target_pieces: list[str]

    @classmethod
    def of(cls, trained: TrainedModel) -> "ExportedModel":
        """Take a model apart."""
        model = trained.model
        if not isinstance(model, Transformer):
            raise UserError(
                f"{trained.run_dir}: no format has hpcasync's recurrent model (model.architecture=rnn): only "
                "Transformers can be exported"
            )
        parts = {name: tensor.detach().float().cpu().contiguous() for name, tensor in _tensors(model)}
        vocabularies = trained.source_vocabulary, trained.target_vocabulary
        pieces = [vocabulary.pieces(range(len(vocabulary))) for vocabulary in vocabularies]
        for vocabulary, names in zip(vocabularies, pieces, strict=True):
            if len(set(names)) < len(names):
                raise UserError(f"{vocabulary.path}: two pieces have one name, which no other program can tell apart")
        return cls(trained, model, parts, *pieces)

    @property
    def is_pre_norm(self) -> bool:
        """Normalisation before each sub-layer, and once at the end of each stack."""
        return self.trained.config.model.norm == "pre"

    @property
    def layer_norm_epsilon(self) -> float:
        """What every normalisation adds to the variance."""
        return next(module.eps for module in self.model.modules() if isinstance(module, nn.LayerNorm))

    def embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of source and target before scaling, and the output projection: [pieces, dim] each; the same where tied."""
        model = self.model
        weights = model.source_embedding.weight, model.target_embedding.weight, model.output_weight
        source, target, output = (weight.detach().float().cpu() for weight in weights)
        return source, target, output

    def copy_vocabularies(self, directory: Path) -> None:
        """Put the SentencePiece models beside the model."""
        for name, vocabulary in (
            ("source", self.trained.source_vocabulary),
            ("target", self.trained.target_vocabulary),
        ):
            (directory / f"{name}.spm").write_bytes(vocabulary.path.read_bytes())


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    for name, part in _parts(model):
        weight, bias = (part.weight, part.bias) if isinstance(part, nn.Module) else part
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        yield f"{name}.weight", weight
        yield f"{name}.bias", bias


def _parts(model: Transformer) -> Iterator[_Part]:
    for index, layer in enumerate(model.encoder):
        assert isinstance(layer, EncoderLayer)
        yield from _self_attention(f"encoder.{index}.self", layer.self_attention)
        yield from _feed_forward(f"encoder.{index}.ffn", layer.feed_forward)
    memory = list(_unfused(model.memory_projection, 2 * len(model.decoder)))
    for index, layer in enumerate(model.decoder):
        assert isinstance(layer, DecoderLayer)
        yield from _self_attention(f"decoder.{index}.self", layer.self_attention)
        yield from _cross_attention(f"decoder.{index}.cross", layer.cross_attention)
        yield f"decoder.{index}.cross.key", memory[2 * index]
        yield f"decoder.{index}.cross.value", memory[2 * index + 1]
        yield from _feed_forward(f"decoder.{index}.ffn", layer.feed_forward)
    for name, norm in (("encoder.norm", model.encoder_norm), ("decoder.norm", model.decoder_norm)):
        if isinstance(norm, nn.LayerNorm):
            yield name, norm


def _self_attention(name: str, layer: SelfAttention) -> Iterator[_Part]:
    for projection, tensors in zip(("query", "key", "value"), _unfused(layer.project, 3), strict=True):
        yield f"{name}.{projection}", tensors
    yield f"{name}.outer", layer.outer
    yield from _norm(name, layer.residual)


def _cross_attention(name: str, layer: CrossAttention) -> Iterator[_Part]:
    yield f"{name}.query", layer.project
    yield f"{name}.outer", layer.outer
    yield from _norm(name, layer.residual)


def _feed_forward(name: str, layer: FeedForward) -> Iterator[_Part]:
    yield f"{name}.inner", layer.inner
    yield f"{name}.outer", layer.outer
    yield from _norm(name, layer.residual)


def _norm(name: str, residual: Residual) -> Iterator[_Part]:
    yield f"{name}.norm", residual.norm


def _unfused(linear: nn.Linear, num_fused: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(linear.weight.chunk(num_fused), linear.bias.chunk(num_fused), strict=True)
