"""A deep recurrent encoder-decoder with attention: the contrast to the Transformer.

Aji & Heafield (WNGT 2019) train a deep RNN beside the Transformer. This is a standard deep one, of parts that need no
loop over target positions in training:

- encoder: one bidirectional LSTM layer, then residual layers whose direction alternates (Zhou et al. 2016, "Deep
  Recurrent Models with Fast-Forward Connections"; compared in Miceli Barone et al. 2017, "Deep Architectures for NMT");
- decoder: the attention looks from the output of the first layer, as in GNMT (Wu et al. 2016, section 3), with several
  heads, as in RNMT+ (Chen et al. 2018, section 3.1); its context enters the residual stream that the deeper layers
  read. It is not fed back into the first layer, so that every LSTM runs over all positions in one call;
- layer normalisation before each residual branch and before the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcasync.config.model import ModelConfig
from hpcasync.nmt.decoder_state import DecoderState
from hpcasync.nmt.embedding import TokenEmbedding
from hpcasync.nmt.loss import summed_cross_entropy
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.packing import select_rows

LstmState = tuple[Tensor, Tensor]  # hidden and cell, each [1, N, dim]
# Autocast takes float16 for recurrent layers there, whatever it was told (torch's aten/src/ATen/cudnn/AutocastRNN.cpp).
_ALWAYS_FLOAT16 = ("cuda",)


@dataclass
class RecurrentState:
    """What the decoder keeps between steps for N rows: LSTM states, and the encoded source to attend to."""

    layers: list[LstmState]
    memory: Tensor  # [N, S, 2, heads, head_dim], keys and values
    memory_mask: Tensor  # [N, S] bool, true where the source has a piece
    source_rows: Tensor  # [N] int64, the sentence that each row's memory belongs to

    @property
    def num_rows(self) -> int:
        return len(self.source_rows)

    def select_(self, rows: Tensor) -> None:
        self.layers = [(hidden.index_select(1, rows), cell.index_select(1, rows)) for hidden, cell in self.layers]
        source_rows = self.source_rows.index_select(0, rows)
        # Hypotheses of one sentence share its memory: reordering them moves nothing of it.
        if not torch.equal(source_rows, self.source_rows):
            self.memory = self.memory.index_select(0, rows)
            self.memory_mask = self.memory_mask.index_select(0, rows)
            self.source_rows = source_rows


class RecurrentModel(TranslationModel):
    """Deep recurrent encoder-decoder with attention."""

    def __init__(
        self,
        config: ModelConfig,
        num_source_pieces: int,
        num_target_pieces: int,
        source_pad_id: int,
        target_pad_id: int,
    ) -> None:
        super().__init__()
        self.source_pad_id, self.target_pad_id = source_pad_id, target_pad_id
        self.source_embedding = TokenEmbedding(num_source_pieces, config.dim, source_pad_id)
        if config.tie == "all":
            self.target_embedding = self.source_embedding
        else:
            self.target_embedding = TokenEmbedding(num_target_pieces, config.dim, target_pad_id)
        self.encoder = Encoder(config)
        self.bridge = nn.Linear(config.dim, config.decoder_layers * config.dim)
        self.decoder = Decoder(config)
        if config.tie == "none":
            self.output_weight = nn.Parameter(torch.empty(num_target_pieces, config.dim))
            nn.init.normal_(self.output_weight, std=config.dim**-0.5)
        else:
            self.output_weight = self.target_embedding.weight
        self.dropout = nn.Dropout(config.dropout)
        for module in (self.encoder, self.bridge, self.decoder):
            for name, parameter in module.named_parameters():
                _initialise_(name, parameter)

    def summed_loss(
        self,
        source: Tensor,
        target_input: Tensor,
        target_output: Tensor,
        label_smoothing: float,
        target_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        targets = target_output.view(-1)
        rows = (targets != self.target_pad_id).nonzero().view(-1) if target_rows is None else target_rows
        stream = self.decoder(self._embed(self.target_embedding, target_input), self.start(source))
        hidden = self.decoder.norm(select_rows(stream.flatten(0, 1), rows))
        return summed_cross_entropy(hidden, self.output_weight, targets.index_select(0, rows), label_smoothing)

    def start(self, source: Tensor) -> RecurrentState:
        present = source != self.source_pad_id
        lengths = present.sum(1)
        encoded = self.encoder(self._embed(self.source_embedding, source), lengths)
        mean = (encoded * present[:, :, None]).sum(1) / lengths[:, None]
        # The first hidden states come from the mean of the encoder's outputs, as in Nematus (Sennrich et al. 2017).
        initial = torch.tanh(self.bridge(mean))
        layers = [
            (hidden[None].contiguous(), torch.zeros_like(hidden[None]))
            for hidden in initial.chunk(self.decoder.num_layers, 1)
        ]
        rows = torch.arange(len(source), device=source.device)
        return RecurrentState(layers, self.decoder.attention.remember(encoded), present, rows)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        assert isinstance(state, RecurrentState)
        stream = self.decoder(self._embed(self.target_embedding, tokens[:, None]), state)
        return functional.linear(self.decoder.norm(stream[:, 0]), self.output_weight).float()

    def _embed(self, embedding: TokenEmbedding, tokens: Tensor) -> Tensor:
        # Without positions, which TokenEmbedding's own forward adds: a recurrent layer counts by itself.
        embedded: Tensor = self.dropout(functional.embedding(tokens, embedding.weight) * embedding.scale)
        return embedded


class Lstm(nn.LSTM):
    """torch's; in float32 where autocast is to take bfloat16, and would take float16, beyond whose range sums get."""

    def forward(self, stream: Tensor, state: LstmState | None = None) -> tuple[Tensor, LstmState]:  # type: ignore[override]
        """As torch's, for padded sequences."""
        device = stream.device.type
        is_known = device not in _ALWAYS_FLOAT16 or not torch.is_autocast_enabled(device)
        if is_known or torch.get_autocast_dtype(device) == torch.float16:
            return super().forward(stream, state)
        with torch.autocast(device, enabled=False):
            return super().forward(stream.float(), state and (state[0].float(), state[1].float()))


class Encoder(nn.Module):
    """One bidirectional LSTM layer, then residual LSTM layers of alternating direction."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, num_deep = config.dim, config.encoder_layers - 1
        self.forwards = Lstm(dim, dim // 2, batch_first=True)
        self.backwards = Lstm(dim, dim // 2, batch_first=True)
        self.layers = nn.ModuleList(Lstm(dim, dim, batch_first=True) for _ in range(num_deep))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_deep))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Encode `embedded` [B, S, dim], of which row b has `lengths[b]` positions; the outputs have the same shape.

        A layer that reads from right to left reads each row reversed within its length. So padding comes last for every
        layer and cannot reach a real position: no packing, and no lengths to copy to the CPU.
        """
        order = reversal(lengths, embedded.shape[1])[:, :, None]
        left, _ = self.forwards(embedded)
        right, _ = self.backwards(_reorder(embedded, order))
        stream = self.dropout(torch.cat((left, _reorder(right, order)), 2))
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            branch = norm(stream)
            if index % 2 == 0:
                branch = _reorder(layer(_reorder(branch, order))[0], order)
            else:
                branch, _ = layer(branch)
            stream = stream + self.dropout(branch)
        normalised: Tensor = self.norm(stream)
        return normalised


class Decoder(nn.Module):
    """An LSTM layer, attention from its output to the source, then residual LSTM layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, num_deep = config.dim, config.decoder_layers - 1
        self.num_layers = config.decoder_layers
        self.first = Lstm(dim, dim, batch_first=True)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(config)
        self.layers = nn.ModuleList(Lstm(dim, dim, batch_first=True) for _ in range(num_deep))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_deep))
        self.norm = nn.LayerNorm(dim)  # applied by the model, to the positions that are no padding
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embedded: Tensor, state: RecurrentState) -> Tensor:
        """Decode `embedded` [N, T, dim] from `state`, which moves on by T positions; returns [N, T, dim]."""
        output, state.layers[0] = self.first(embedded, state.layers[0])
        stream: Tensor = self.dropout(output)
        context = self.attention(self.attention_norm(stream), state.memory, state.memory_mask)
        stream = stream + self.dropout(context)
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), start=1):
            output, state.layers[index] = layer(norm(stream), state.layers[index])
            stream = stream + self.dropout(output)
        return stream


class Attention(nn.Module):
    """Scaled dot-product attention with several heads from decoder positions to source positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)

    def remember(self, encoded: Tensor) -> Tensor:
        """Keys and values [B, S, 2, heads, head_dim] of `encoded` [B, S, dim]."""
        memory = torch.stack((self.key(encoded), self.value(encoded)), 2)
        return memory.view(*memory.shape[:3], self.heads, -1)

    def forward(self, stream: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """The context [N, T, dim] of every position of `stream` [N, T, dim]; `mask` is the state's `memory_mask`."""
        query: Tensor = self.query(stream)
        query = query.view(*query.shape[:2], self.heads, -1).transpose(1, 2)
        key, value = memory.permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        heads = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None, :], dropout_p=dropout
        )
        context: Tensor = self.outer(heads.transpose(1, 2).flatten(2))
        return context


def reversal(lengths: Tensor, num_positions: int) -> Tensor:
    """For each row the positions [B, num_positions] that reverse its first `lengths[b]` entries and keep the others."""
    positions = torch.arange(num_positions, device=lengths.device)
    return torch.where(positions < lengths[:, None], lengths[:, None] - 1 - positions, positions)


def _reorder(stream: Tensor, order: Tensor) -> Tensor:
    return stream.gather(1, order.expand_as(stream))


def _initialise_(name: str, parameter: Tensor) -> None:
    """Orthogonal recurrent weights per gate, forget gates open (Jozefowicz et al. 2015), Xavier elsewhere."""
    last = name.rpartition(".")[2]
    if last.startswith("weight_hh"):
        for gate in parameter.data.chunk(4):
            nn.init.orthogonal_(gate)
    elif last.startswith("weight_ih"):
        for gate in parameter.data.chunk(4):
            nn.init.xavier_uniform_(gate)
    elif parameter.dim() == 2:
        nn.init.xavier_uniform_(parameter)
    elif last.startswith("bias"):
        nn.init.zeros_(parameter)
        if last.startswith("bias_ih"):
            size = parameter.shape[0] // 4
            parameter.data[size : 2 * size].fill_(1.0)
