"""What every translation model offers to training and search."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from hpcasync.nmt.decoder_state import DecoderState


class TranslationModel(nn.Module, ABC):
    """An encoder-decoder over B sentences of S source and T target tokens: int64 ids, padded on the right."""

    @abstractmethod
    def summed_loss(
        self,
        source: Tensor,
        target_input: Tensor,
        target_output: Tensor,
        label_smoothing: float,
        target_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy summed over the target tokens that are no padding.

        Args:
            source: [B, S], sentence + eos.
            target_input: [B, T], bos + sentence.
            target_output: [B, T], sentence + eos.
            label_smoothing: probability mass spread evenly over all target pieces.
            target_rows: [n] int64, ascending flat positions of the tokens of `target_output`; default: they are looked
                for, which on a GPU means to wait for it.

        Returns:
            The label-smoothed loss (differentiable scalar, float32) and the negative log likelihood in nats
            (detached scalar, float32).

        Raises:
            UserError: a sequence is longer than the model allows.
        """

    @abstractmethod
    def start(self, source: Tensor) -> DecoderState:
        """Encode source [B, S]: a state of B rows with nothing decoded."""

    @abstractmethod
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Feed one token per row, [N] int64, advance the state in place, and return logits [N, V] float32."""
