"""An exported redraft model. It needs torch and transformers alone.

    RedraftForCausalLM   left to right: reads [BOS] + text; logits[:, i] are of token i + 1; `generate` as usual
    RedraftForMaskedLM   the diffusion families: logits[:, i] are of token i; `log_p` and `sample`

Logits have V + 1 columns: the head's own V, unnormalised, and for the spare id, which is never predicted, a constant so low
that its probability is zero. So log_softmax(logits) is the log-probability over text.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput

from .configuration_redraft import RedraftConfig
from .network_redraft import Trunk, wide
from .sampling_redraft import CARRIED, Process, ancestral, by_blocks, categorical, in_order, sharpened

NEVER = -1e4  # the spare id's logit
CHUNK_LOGITS = 1 << 24  # float64 probabilities alive at once when sampling


class RedraftPreTrainedModel(PreTrainedModel):
    """A trunk and a head of V rows."""

    config: RedraftConfig
    config_class = RedraftConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: RedraftConfig):
        super().__init__(config)
        self.model = Trunk(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size - 1, bias=config.block == "dit")
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        raise NotImplementedError(
            "the vocabulary is fixed: the last row is the spare id, and the head has no row for it"
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., V + 1] in float32 at least."""
        return F.pad(wide(self.output(hidden)), (0, 1), value=NEVER)


class RedraftForCausalLM(RedraftPreTrainedModel, GenerationMixin):
    """Left to right. The text must follow BOS, the id `config.bos_token_id` = V, which the tokenizer puts there."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """`attention_mask` [B, K] over cached and new tokens, 0 for padding, on either side. `labels` [B, Q]: the input ids
        again; the loss is the mean of -log p of labels 1, 2, ... given what comes before, -100 left out."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = input_ids.new_ones(1, past + input_ids.shape[1]) if attention_mask is None else attention_mask
        positions = places(mask)[:, past:] if position_ids is None else position_ids
        pattern = causal(mask)[:, past:]
        hidden = self.model(input_ids, positions, pattern, cache=past_key_values if use_cache else None)
        logits = self.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)
        return out.to_tuple() if return_dict is False else out


class RedraftForMaskedLM(RedraftPreTrainedModel):
    """A diffusion family. [MASK] is the id `config.mask_token_id` = V; a uniform process has none."""

    def forward(
        self,
        input_ids: Tensor,
        timesteps: Tensor | float | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        order: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits [B, L, V + 1] of the clean token at each position of `input_ids` [B, L].

        `timesteps` in [0, 1], [B] or a number, for a family whose network reads the time; None: 0, clean text.
        `attention_mask` [B, L]: 0 for padding, on either side. `order` [B, L]: permutations, for Eso-LM. `labels` [B, L]: the
        loss is the mean of -log p there, -100 left out; it carries no weights of a bound.
        """
        logits = self.logits(self.hidden(input_ids, timesteps, attention_mask, order))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        out = MaskedLMOutput(loss=loss, logits=logits)
        return out.to_tuple() if return_dict is False else out

    def log_p(
        self,
        input_ids: Tensor,
        timesteps: Tensor | float | None = None,
        attention_mask: Tensor | None = None,
        order: Tensor | None = None,
    ) -> Tensor:
        """Normalised log p(x0 | input_ids) [B, L, V], as in redraft: where masks hide the text, what is visible is its own
        prediction. (Duo and GIDD may see a wrong token, and predict every one.)"""
        logits = wide(self.output(self.hidden(input_ids, timesteps, attention_mask, order)))
        log_p = logits.log_softmax(-1)
        if self.config.process["kind"] not in CARRIED:
            return log_p
        vocab = log_p.shape[-1]
        own = F.one_hot(input_ids.clamp(max=vocab - 1), vocab).bool()
        certain = torch.where(own, 0.0, -torch.inf).to(log_p.dtype)
        return torch.where((input_ids < vocab)[..., None], certain, log_p)

    def hidden(
        self, tokens: Tensor, t: Tensor | float | None = None, mask: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """[B, L] -> [B, L, d], in the positions of `tokens`."""
        mask = torch.ones_like(tokens) if mask is None else mask
        if self.config.process["kind"] == "ordered":
            return self._ordered(tokens, mask, order)
        pattern = mask.bool()[:, None] | itself(tokens)
        if self.config.process["kind"] == "blocks":
            block = places(mask) // self.config.process["block"]
            pattern = pattern & (block[:, :, None] >= block[:, None]) | itself(tokens)
        sigma = None
        if self.config.process["clocked"]:
            t = torch.as_tensor(0.0 if t is None else t, dtype=torch.float64, device=tokens.device)
            sigma = Process(self.config).sigma(t.reshape(-1, 1).expand(len(tokens), 1))
        return self.model(tokens, places(mask), None if bool(pattern.all()) else pattern, sigma)

    def _ordered(self, tokens: Tensor, mask: Tensor, order: Tensor | None) -> Tensor:
        """Eso-LM: clean tokens first, then masks, each left to right, unless an order is given."""
        hide = tokens == self.config.vocab_size - 1
        order = hide.to(torch.int8).argsort(stable=True, dim=1) if order is None else order.expand_as(tokens)
        written = (~hide.gather(1, order)).cumprod(1).sum(1)
        seen = tokens.gather(1, order), places(mask).gather(1, order), mask.gather(1, order)
        hidden = self._in_order(*seen, written)
        return hidden.gather(1, order.argsort(1)[..., None].expand_as(hidden))

    def _in_order(self, tokens: Tensor, positions: Tensor, mask: Tensor, written: Tensor) -> Tensor:
        """Tokens as they were generated: causal; in variant A the first `written` [B] of them see one another."""
        pattern = causal(mask)
        if self.config.process["variant"] == "A":
            among = torch.arange(tokens.shape[1], device=tokens.device) < written[:, None]
            pattern = pattern | (among[:, :, None] & (among & mask.bool())[:, None])
        return self.model(tokens, positions, pattern)

    @torch.no_grad()
    def sample(
        self,
        prompt_ids: Tensor | None = None,
        n: int = 1,
        length: int | None = None,
        steps: int = 64,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[n, length] ids, drawn as the family does: ancestrally, in an order (Eso-LM), block by block (BD3-LM).

        `prompt_ids` [P] or [n, P] stand at the beginning and stay. `length`: of the canvas, prompt included; the trained one
        if left out. `steps` equal steps of the reverse process, for BD3-LM of each block (0: one token a call).
        `temperature` divides log p(x0).
        """
        tokens, free = self._canvas(prompt_ids, n, self.config.max_position_embeddings if length is None else length)
        kind = self.config.process["kind"]
        if steps < (kind != "blocks") or temperature < 0:
            raise ValueError(f"steps must be at least 1 and temperature at least 0: got {steps} and {temperature}")
        draw = lambda rows, law=lambda p0, part: p0: self._drawn(rows, law, temperature, generator)
        options, rest = self.config.process, (draw, tokens, free, steps, generator)
        if kind == "ordered":
            ones = lambda seen, order, written: self._in_order(seen, order, torch.ones_like(seen), written)
            return in_order(options, ones, *rest)
        if kind == "blocks":
            return by_blocks(options, self.hidden, *rest)
        return ancestral(Process(self.config), self.hidden, *rest)

    def _canvas(self, prompt: Tensor | None, n: int, length: int) -> tuple[Tensor, Tensor]:
        """Tokens [n, length], [MASK] after the prompt; and which of them are to be written."""
        prompt = torch.zeros(0) if prompt is None else torch.as_tensor(prompt)
        prompt = prompt.to(self.device, torch.int64).expand(n, prompt.shape[-1])
        if n < 1 or length < prompt.shape[1]:
            raise ValueError(f"n must be at least 1, and length hold the prompt: got {n}, {length}, {prompt.shape[1]}")
        rest = prompt.new_full((n, length - prompt.shape[1]), self.config.vocab_size - 1)
        tokens = torch.cat([prompt, rest], 1)
        return tokens, (torch.arange(length, device=self.device) >= prompt.shape[1]).expand(n, -1)

    def _drawn(self, rows: Tensor, law: Any, temperature: float, generator: torch.Generator | None) -> Tensor:
        """Ids [R] from hidden rows [R, d], a few rows at a time: never [B, L, V] at once."""
        size = max(1, CHUNK_LOGITS // self.config.vocab_size)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        laws = (law(sharpened(self.output(rows[part]), temperature), part) for part in parts)
        return torch.cat([categorical(p, generator) for p in laws])


def places(mask: Tensor) -> Tensor:
    """Positions of tokens that are not padding, 0, 1, ...: [B, K] -> [B, K]."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def itself(tokens: Tensor) -> Tensor:
    """[1, L, L]: a token sees itself, padding too, so that its softmax is a number; nobody reads it."""
    return torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)[None]


def causal(mask: Tensor) -> Tensor:
    """[B, K] -> [B, K, K] bool: each sees itself and what is before it, but no padding."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return mask.bool()[:, None] & (place <= place[:, None]) | (place == place[:, None])


# So that `save_pretrained` takes this code along.
RedraftConfig.register_for_auto_class()
RedraftForCausalLM.register_for_auto_class("AutoModelForCausalLM")
RedraftForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
