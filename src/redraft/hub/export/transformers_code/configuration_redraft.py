"""The configuration of an exported redraft model: the network's shape under the names of `transformers`, and the family."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class RedraftConfig(PretrainedConfig):
    """`vocab_size` = V + 1: V text ids, and the spare id V: BOS to what writes left to right, [MASK] to the masked.

    `block`: "dit" (LayerNorm, GELU, adaLN over `cond_size` numbers; 0: none) or "llama" (RMSNorm, SwiGLU).
    `family`, `family_options`: its name and settings in redraft. What this code goes by is `process`: its "kind"
    (left_to_right, absorbing, uniform, hybrid, stationary, ordered or blocks), whether the network reads the time
    ("clocked"), and the settings of the kind.
    `max_position_embeddings`: tokens in a row when it was trained; rotary positions go on beyond.
    """

    model_type = "redraft_lm"

    def __init__(
        self,
        family: str = "ar",
        family_options: dict[str, Any] | None = None,
        process: dict[str, Any] | None = None,
        block: str = "llama",
        vocab_size: int = 258,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 256,
        cond_size: int = 0,
        max_position_embeddings: int = 1024,
        rotary_base: float = 10000.0,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        self.family, self.family_options = family, dict(family_options or {})
        self.process = dict(process or {"kind": "left_to_right", "clocked": False})
        self.block, self.cond_size = block, cond_size
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.rotary_base = rotary_base
        self.max_position_embeddings, self.use_cache = max_position_embeddings, use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
