"""The Transformer (Vaswani et al. 2017), pre- or post-norm, with cached decoding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcasync.config.model import ModelConfig
from hpcasync.nmt.decoder_state import DecoderState
from hpcasync.nmt.dropout import dropout
from hpcasync.nmt.embedding import PositionTable, TokenEmbedding
from hpcasync.nmt.layers import DecoderLayer, EncoderLayer
from hpcasync.nmt.linear import Linear
from hpcasync.nmt.loss import summed_cross_entropy
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.packing import Packing, select_rows

_CACHE_BLOCK = 16  # positions by which the decoder's cache grows
_MOST_COMPILED = 64  # shapes of a kind of layer; more are computed without being compiled


@dataclass
class TransformerState:
    """Decoder state of N hypotheses.

    Attributes:
        memory: [N, S, layers, 2, heads, head_dim], keys and values of the encoder's output for every decoder layer.
        memory_mask: [N, S] bool or None.
        cache: [N, layers, 2, capacity, heads, head_dim], keys and values of the positions decoded so far.
        position: number of positions decoded.
        source_rows: [N] int64, the sentence that each row's memory belongs to.
    """

    memory: Tensor
    memory_mask: Tensor | None
    cache: Tensor
    position: int
    source_rows: Tensor

    @property
    def num_rows(self) -> int:
        return len(self.source_rows)

    def select_(self, rows: Tensor) -> None:
        source_rows = self.source_rows.index_select(0, rows)
        if not torch.equal(source_rows, self.source_rows):
            # Reordering within the beams of a sentence keeps its memory: the usual case copies no memory at all.
            self.memory = self.memory.index_select(0, rows)
            if self.memory_mask is not None:
                self.memory_mask = self.memory_mask.index_select(0, rows)
        self.source_rows = source_rows
        self.cache = self.cache.index_select(0, rows)

    def reserve_(self) -> None:
        """Make room for one more position."""
        if self.position < self.cache.shape[3]:
            return
        shape = list(self.cache.shape)
        shape[3] = _CACHE_BLOCK
        self.cache = torch.cat([self.cache, self.cache.new_zeros(shape)], dim=3)


class Transformer(TranslationModel):
    """Encoder-decoder Transformer."""

    def __init__(
        self,
        config: ModelConfig,
        num_source_pieces: int,
        num_target_pieces: int,
        source_pad_id: int,
        target_pad_id: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.source_pad_id, self.target_pad_id = source_pad_id, target_pad_id
        self.source_embedding = TokenEmbedding(num_source_pieces, config.dim, source_pad_id)
        self.target_embedding = (
            self.source_embedding
            if config.tie == "all"
            else TokenEmbedding(num_target_pieces, config.dim, target_pad_id)
        )
        self.positions = PositionTable(config.max_length, config.dim)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.memory_projection = Linear(config.dim, config.dim, num_fused=2 * config.decoder_layers)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        # With post-norm every layer ends in a normalisation; with pre-norm the stream needs one at its end.
        has_final_norm = config.norm == "pre"
        self.encoder_norm = nn.LayerNorm(config.dim) if has_final_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.dim) if has_final_norm else nn.Identity()
        if config.tie == "none":
            self.output_weight = nn.Parameter(torch.empty(num_target_pieces, config.dim))
            nn.init.normal_(self.output_weight, std=config.dim**-0.5)
        else:
            self.output_weight = self.target_embedding.weight
        self._compiled: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile the layers' forward and backward passes in training: once for each shape of batches."""
        # Shapes are few (`data.shapes`). A layer of each kind has the code of all.
        torch.backends.cuda.enable_cudnn_sdp(True)
        torch._dynamo.config.recompile_limit = _MOST_COMPILED
        encoder, decoder = (
            torch.compile(kind.forward, backend=backend, dynamic=False) for kind in (EncoderLayer, DecoderLayer)
        )
        self._compiled = encoder, decoder

    def summed_loss(
        self,
        source: Tensor,
        target_input: Tensor,
        target_output: Tensor,
        label_smoothing: float,
        target_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        memory, memory_mask = self._encode(source)
        packing = self._packing_of(target_output, self.target_pad_id)
        tokens = packing.pack(target_input)
        zeroed = packing.starts(tokens.device) if self._starts_with_zero else None
        stream = self._embed(self.target_embedding, tokens, self._positions_of(packing), zeroed)
        _, forward = self._forwards
        for layer, layer_memory in zip(self.decoder, memory.unbind(2), strict=True):
            stream = forward(layer, stream, packing, layer_memory, memory_mask)
        targets = packing.pack(target_output)
        if packing.mask is not None and packing.rows is None:
            rows = packing.mask.view(-1).nonzero().view(-1) if target_rows is None else target_rows
            stream, targets = select_rows(stream, rows), targets.index_select(0, rows)
        return summed_cross_entropy(self.decoder_norm(stream), self.output_weight, targets, label_smoothing)

    def start(self, source: Tensor) -> TransformerState:
        memory, memory_mask = self._encode(source)
        num_rows, _, layers, _, heads, head_dim = memory.shape
        cache = memory.new_zeros(num_rows, layers, 2, 0, heads, head_dim)
        return TransformerState(memory, memory_mask, cache, 0, torch.arange(num_rows, device=source.device))

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        assert isinstance(state, TransformerState)
        state.reserve_()
        position = self.positions(state.position, state.position + 1)
        is_zeroed = self._starts_with_zero and state.position == 0
        zeroed = torch.ones_like(tokens, dtype=torch.bool) if is_zeroed else None
        stream = self._embed(self.target_embedding, tokens, position, zeroed)
        for index, layer in enumerate(self.decoder):
            assert isinstance(layer, DecoderLayer)
            memory = state.memory[:, :, index]
            stream = layer.step(stream, state.cache[:, index], state.position, memory, state.memory_mask)
        state.position += 1
        hidden = self.decoder_norm(stream)
        return functional.linear(hidden, self.output_weight).float()

    def _encode(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys and values [B, S, layers, 2, heads, head_dim] for the decoder, and the mask [B, S] or None."""
        packing = self._packing_of(source, self.source_pad_id)
        stream = self._embed(self.source_embedding, packing.pack(source), self._positions_of(packing))
        forward, _ = self._forwards
        for layer in self.encoder:
            stream = forward(layer, stream, packing)
        projected = packing.pad(self.memory_projection(self.encoder_norm(stream)))
        return projected.view(*source.shape, self.config.decoder_layers, 2, self.config.heads, -1), packing.mask

    @property
    def _is_compiled(self) -> bool:
        # Whatever is translated or scored has a shape of its own.
        return self._compiled is not None and self.training

    @property
    def _forwards(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """Of an encoder layer and a decoder layer."""
        if self._compiled is not None and self._is_compiled:
            return self._compiled
        return EncoderLayer.forward, DecoderLayer.forward

    def _packing_of(self, tokens: Tensor, pad_id: int) -> Packing:
        return Packing.of(tokens, pad_id, packs=not self._is_compiled)

    def _positions_of(self, packing: Packing) -> Tensor:
        """[n, dim]"""
        table: Tensor = self.positions(0, packing.length)
        if packing.rows is None:
            return table.repeat(packing.batch, 1)
        return table.index_select(0, packing.rows.remainder(packing.length))

    @property
    def _starts_with_zero(self) -> bool:
        return self.config.decoder_start == "zero"

    def _embed(
        self, embedding: TokenEmbedding, tokens: Tensor, positions: Tensor, zeroed: Tensor | None = None
    ) -> Tensor:
        return dropout(embedding(tokens, positions, zeroed), self.config.dropout, self.training)
