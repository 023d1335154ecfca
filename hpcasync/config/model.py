"""The section of the configuration that says what model is trained."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hpcasync.config.section import Section
from hpcasync.config.strict import UserPath


class ModelConfig(Section):
    """The model; a preset gives the sizes that are not set."""

    architecture: Literal["transformer", "rnn"] = Field(
        "transformer", description="rnn: deep recurrent, with attention"
    )
    preset: Literal["small", "base", "big"] = Field("base", description="sizes for the keys below that are 0")
    dim: int = Field(0, ge=0, le=2**20, description="model dimension; 0: from the preset")
    ffn_dim: int = Field(
        0, ge=0, le=2**20, description="inner dimension of the feed-forward layers; 0: from the preset"
    )
    heads: int = Field(0, ge=0, description="attention heads; 0: from the preset")
    encoder_layers: int = Field(0, ge=0, le=1024, description="0: from the preset")
    decoder_layers: int = Field(0, ge=0, le=1024, description="0: from the preset")
    norm: Literal["pre", "post"] = Field("pre", description="layer normalisation before or after each sublayer")
    tie: Literal["all", "target", "none"] = Field(
        "all", description="all: source, target and output embeddings share; target: target and output do"
    )
    decoder_start: Literal["embedding", "zero"] = Field(
        "embedding",
        description="what the decoder begins with: the embedding of the beginning of sentence; or a vector of zeros, "
        "as in Marian (`hpcasync export --format marian`); transformer only",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="of embeddings and sublayer outputs")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="of attention weights")
    start_from: UserPath | None = Field(
        None,
        description="a run directory or a snapshot of another run, of the same model and vocabularies, whose "
        "parameters training begins with; default: drawn at random",
    )
    frozen: tuple[str, ...] = Field(
        (), description="parameters that stay as they are, by patterns of their names such as encoder.*"
    )
    max_length: int = Field(512, ge=2, le=2**20, description="longest sequence in tokens, end of sentence included")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "base") if isinstance(values, dict) else None
        if not isinstance(preset, str):
            return values  # the check of the types that follows refuses it
        sizes = MODEL_PRESETS.get(preset, {})
        return {**values, **{key: size for key, size in sizes.items() if not values.get(key)}}

    @model_validator(mode="after")
    def _check_heads(self) -> "ModelConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.architecture == "rnn" and self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even: the encoder's first layer has half of it each way")
        return self


MODEL_PRESETS: dict[str, dict[str, int]] = {
    "small": {"dim": 256, "ffn_dim": 1024, "heads": 4, "encoder_layers": 3, "decoder_layers": 3},
    # Transformer base and big: Vaswani et al. 2017, table 3.
    "base": {"dim": 512, "ffn_dim": 2048, "heads": 8, "encoder_layers": 6, "decoder_layers": 6},
    "big": {"dim": 1024, "ffn_dim": 4096, "heads": 16, "encoder_layers": 6, "decoder_layers": 6},
}
