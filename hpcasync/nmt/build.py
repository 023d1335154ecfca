"""From a configuration to a model."""

import torch

from hpcasync.config.model import ModelConfig
from hpcasync.errors import UserError
from hpcasync.nmt.memory import limit_kernel_caches
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.transformer import Transformer


def build_model(
    config: ModelConfig, num_source_pieces: int, num_target_pieces: int, source_pad_id: int, target_pad_id: int
) -> TranslationModel:
    """A freshly initialised model (by torch's global generator), on the CPU in float32, in training mode."""
    if config.tie == "all" and (num_source_pieces, source_pad_id) != (num_target_pieces, target_pad_id):
        raise UserError(
            f"model.tie=all needs one joint vocabulary, but source and target have {num_source_pieces} and "
            f"{num_target_pieces} pieces: set model.tie=target, or prepare the corpus with a joint vocabulary"
        )
    limit_kernel_caches()
    # It plans anew for each shape, which takes longer than many a step, and nearly every batch has its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if config.architecture == "transformer":
        return Transformer(config, num_source_pieces, num_target_pieces, source_pad_id, target_pad_id)
    # Imported here so that a Transformer run does not depend on the recurrent model.
    from hpcasync.nmt.rnn import RecurrentModel

    return RecurrentModel(config, num_source_pieces, num_target_pieces, source_pad_id, target_pad_id)
