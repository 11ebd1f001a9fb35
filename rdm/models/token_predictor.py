"""RARM's network: transformers' GPT-2 with cross-attention, over codebook rows of a VQ stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rdm.config import Config
from rdm.context import Context
from rdm.errors import ModelError

CONTEXT_FILE = "context_projection.safetensors"


class TokenPredictorConfig(Config):
    """A causal transformer that reads the context tokens by cross-attention in every layer."""

    kind: Literal["token-predictor"] = "token-predictor"
    codebook_size: int = Field(
        default=1024, ge=2, description="Z: tokens are 0 .. Z - 1; Z starts a picture"
    )
    side: int = Field(
        default=16,
        ge=1,
        description="side of the token map; a picture is its rows one after another",
    )
    num_layers: int = Field(default=4, ge=1)
    num_heads: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=1, description="length of a hidden state")
    cross_attention_dim: int = Field(default=512, ge=1, description="length of a context token")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="of embeddings, attention and residual branches"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        return self

    @property
    def length(self) -> int:
        """Tokens of a picture."""
        return self.side * self.side

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """[N] of one sample."""
        return (self.length,)

    @property
    def vector_dim(self) -> None:
        """The length of the context's vector: none is read."""
        return None


def rarm_imagenet_predictor() -> TokenPredictorConfig:
    """Return the official RARM's sizes: 18 layers, 12 heads x 64, 16x16 tokens of VQ-f16.

    It has 183,307,008 parameters, the official network 230,874,112: 47,567,104 fewer. Three choices
    of GPT-2 make them.

    - Feed-forward nets without a gate (the official GEGLU has a second 768 x 3072 matrix and its
      bias): 42,522,624 fewer.
    - The head shares the token embedding's weights (the official 16384 x 768 matrix and its bias
      stand alone): 12,599,296 fewer.
    - Keys and values of the cross-attention are made of 768 numbers, to which one shared matrix
      takes the 512 of an embedding, and all projections have biases: 7,554,048 more; a row for the
      start of a picture: 768 more.
    """
    return TokenPredictorConfig(
        codebook_size=16384, side=16, num_layers=18, num_heads=12, width=768
    )


class TokenPredictor(nn.Module):
    """`forward(tokens, context)` gives all next tokens' logits, `begin(context)` one by one."""

    def __init__(self, config: TokenPredictorConfig, transformer: Any) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer
        # GPT-2's keys and values are as wide as its states. Without a bias, the null context stays
        # zero.
        self.context_projection = nn.Linear(config.cross_attention_dim, config.width, bias=False)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Return logits [B, n + 1, Z] of tokens 0 .. n, each given those before it.

        Args:
            tokens: int64 [B, n], n < side^2.
            context: `tokens` [B, L, D] is required, and read alone; weights of tokens multiply
                the attention that they get.

        Raises:
            ValueError: there is no context (without it, GPT-2 would leave its cross-attention out),
                or another port is set, which would not be read.
        """
        # The start token is the row after the codebook's last.
        start = tokens.new_full((len(tokens), 1), self.config.codebook_size)
        # Shifted by the start token, so that output i depends on tokens before i only.
        inputs = torch.cat([start, tokens], dim=1)
        result = self.transformer(
            inputs,
            encoder_hidden_states=self._projected(context),
            encoder_attention_mask=attention_bias(context),
            # Keys and values are of use to `begin` alone; in training they would only take memory.
            use_cache=False,
        )

        return self._logits(result)

    @property
    def core(self) -> Any:
        """transformers' own network."""
        return self.transformer

    def begin(self, context: Context) -> Any:
        """Return a function from the last tokens, int64 [B] or None, to the next logits [B, Z].

        It keeps keys and values, so a picture costs one pass over each token.
        """
        projected, bias, past = self._projected(context), attention_bias(context), None

        def advance(token: Tensor | None) -> Tensor:
            nonlocal past
            if token is None:
                token = torch.full(
                    (len(projected),), self.config.codebook_size, device=projected.device
                )

            # One column: everything before it is in the cache.
            result = self.transformer(
                token[:, None],
                encoder_hidden_states=projected,
                encoder_attention_mask=bias,
                past_key_values=past,
                use_cache=True,
            )
            # The cache grows by a column; the context's keys and values are computed once.
            past = result.past_key_values
            return self._logits(result)[:, -1]

        return advance

    def _projected(self, context: Context) -> Tensor:
        """Return the context's tokens [B, L, width]; raise where the context cannot be read."""
        context.require_read(("tokens",), "the predictor")
        if context.tokens is None:
            raise ValueError(
                "the predictor needs context tokens; use Context.null() for an unconditional "
                "prediction"
            )
        return self.context_projection(context.tokens)

    def _logits(self, result: Any) -> Tensor:
        """Return the logits without the start token's, which follows nothing."""
        return result.logits[..., : self.config.codebook_size]


def attention_bias(context: Context) -> Tensor | None:
    """Return which tokens are attended to, bool [B, L], or where they have weights what is added
    to the logits, float32 [B, 1, 1, L]: ln w."""
    weights = context.tokens_weight
    if weights is None:
        return context.tokens_present
    # A weight of 0 is a finite number: -inf could meet another one and give nan.
    logs = torch.where(weights > 0, weights.log(), -10000.0)
    return logs[:, None, None, :]


def build_token_predictor(config: TokenPredictorConfig) -> TokenPredictor:
    """Return a predictor with fresh weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    # One row more than the codebook has: the start of a picture.
    network = GPT2Config(
        vocab_size=config.codebook_size + 1,
        n_positions=config.length,
        n_embd=config.width,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        add_cross_attention=True,
        bos_token_id=config.codebook_size,
        eos_token_id=None,
    )
    return TokenPredictor(config, GPT2LMHeadModel(network))


def save_token_predictor(predictor: TokenPredictor, directory: Path) -> None:
    """Write a predictor: the transformer in transformers' layout, the context projection beside."""
    from safetensors.torch import save_file

    predictor.transformer.save_pretrained(str(directory), safe_serialization=True)
    # GPT-2 has no layer for it, so it would be lost in a folder that transformers alone wrote.
    weight = predictor.context_projection.weight.detach().cpu().contiguous()
    save_file({"weight": weight}, directory / CONTEXT_FILE)


def load_token_predictor(directory: Path, config: TokenPredictorConfig) -> TokenPredictor:
    """Open a predictor that `save_token_predictor` wrote (safetensors only).

    Raises:
        ModelError: the directory holds none, it is damaged, or of other sizes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    try:
        transformer = GPT2LMHeadModel.from_pretrained(
            str(directory), use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
        predictor = TokenPredictor(config, transformer)
        predictor.context_projection.load_state_dict(load_file(directory / CONTEXT_FILE))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"the token predictor cannot be opened: {error}",
            where=directory,
            fix="train or export again",
        ) from error
    return predictor.eval()
