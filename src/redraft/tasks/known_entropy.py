"""Text of known entropy: samples of a source whose likelihood is exact, stories260K of llama2.c or a Markov chain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from redraft.errors import UserError, require
from redraft.files import make_folder, read_json, write_json, write_text
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.tasks.word_tokenizer import word_level

BATCH = 256
SOURCE = "stories260K.bin"
MARKOV = "markov"  # its name as a source
HELD_OUT = 256  # rows


class Source(Protocol):
    """What text is drawn from. It stays on the CPU, whatever device the models that learn from it are on: what it draws is
    then a function of the seed alone."""

    vocab: int
    sha256: str

    def sample(self, n: int, length: int, seed: int) -> Iterator[Tensor]:
        """[<= BATCH, length] ids at a time, n rows in all; row i is a function of (seed, i)."""
        ...

    def nats(self, tokens: Tensor) -> Tensor:
        """-log p of each row of ids, float64 [n], in nats."""
        ...


def opened(name: Path) -> Source:
    """The Markov chain by its name, or the model in a folder."""
    return MarkovChain() if str(name) == MARKOV else Stories(name)


class MarkovChain:
    """A chain of order two: p(x_i | x_{i-1}, x_{i-2}) is the softmax of a table that is drawn once and for all, a sum of what
    either of the two says. Before a text stands id 0, twice. Neighbours depend on each other and no others do: a small
    network learns it soon."""

    SHARPNESS, VOCAB = 5.0, 16

    def __init__(self) -> None:
        self.vocab = self.VOCAB
        says = counter_rng.uniform(Key.of(0).fold_in(MARKOV), torch.arange(2 * self.vocab**2))
        last, before = (self.SHARPNESS * says).view(2, self.vocab, self.vocab)
        self.log_p = (last[:, None] + before).log_softmax(-1)  # [last, one before, next], float64
        self.sha256 = sha256(f"{MARKOV} 2 {self.SHARPNESS} {self.vocab}".encode()).hexdigest()

    def sample(self, n: int, length: int, seed: int) -> Iterator[Tensor]:
        for start in range(0, n, BATCH):
            index = torch.arange(start, min(n, start + BATCH))
            noise = counter_rng.uniform(Key.of(seed).fold_in("source"), index[:, None], torch.arange(length))
            ids = torch.zeros(len(index), length + 2, dtype=torch.int64)
            for place in range(length):
                after = self.log_p[ids[:, place + 1], ids[:, place]]
                ids[:, place + 2] = counter_rng.categorical(after, noise[:, place])
            yield ids[:, 2:]

    def nats(self, tokens: Tensor) -> Tensor:
        ids = torch.nn.functional.pad(tokens, (2, 0))
        return -self.log_p[ids[:, 1:-1], ids[:, :-2], ids[:, 2:]].sum(1)


class Stories:
    """stories260K. A text is `length` tokens after BOS; what ends one document does not end it."""

    def __init__(self, folder: Path):
        from redraft.evaluation.generation.llama2c import BEGIN, read_network

        path = folder / SOURCE
        if not path.is_file():
            raise UserError(f"{folder} holds no {SOURCE}: give the folder of llama2.c's stories260K, or {MARKOV}")
        require("this source", "hf", "transformers")
        self.network: Any = read_network(path)
        self.begin, self.vocab = BEGIN, int(self.network.config.vocab_size)
        self.sha256 = sha256(path.read_bytes()).hexdigest()

    @torch.no_grad()
    def sample(self, n: int, length: int, seed: int) -> Iterator[Tensor]:
        for start in range(0, n, BATCH):
            index = torch.arange(start, min(n, start + BATCH))
            noise = counter_rng.uniform(Key.of(seed).fold_in("source"), index[:, None], torch.arange(length))
            ids, cache = torch.full((len(index), 1), self.begin), None
            out = []
            for place in range(length):
                step = self.network(ids, past_key_values=cache, use_cache=True)
                ids = counter_rng.categorical(step.logits[:, -1].log_softmax(-1), noise[:, place])[:, None]
                cache = step.past_key_values
                out.append(ids)
            yield torch.cat(out, 1)

    @torch.no_grad()
    def nats(self, tokens: Tensor) -> Tensor:
        parts = []
        for rows in tokens.split(64):
            begun = torch.cat([torch.full_like(rows[:, :1], self.begin), rows[:, :-1]], 1)
            log_p = self.network(begun).logits.log_softmax(-1)
            parts.append(-log_p.gather(-1, rows[..., None])[..., 0].double().sum(1))
        return torch.cat(parts)


def written(source: Source, folder: Path, rows: int, length: int) -> dict[str, Any]:
    """Draws as files to train and to validate on, made unless they are there; the data settings that read them.

    A token is a word of its own, so that a row's ids are the source's: word i stands for id i of the source.
    """
    place = folder / f"source-{source.sha256[:8]}-{rows}x{length}-s0"
    make_folder(place)
    if not (place / "source.json").exists():
        tokens = torch.cat(list(source.sample(rows + HELD_OUT, length, 0)))
        for name, some in (("train", tokens[HELD_OUT:]), ("valid", tokens[:HELD_OUT])):
            lines = (json.dumps({"prompt": "", "completion": " ".join(map(word, row))}) for row in some.tolist())
            write_text(place / f"{name}.jsonl", "\n".join(lines) + "\n")
        write_text(place / "tokenizer.json", word_level(word(i) for i in range(source.vocab)))
        nats = source.nats(tokens) / length
        write_json(place / "source.json", {
            "entropy": float(nats.mean()), "entropy_se": float(nats.std() / len(nats) ** 0.5), "rows": len(nats),
            "length": length,
            "held_out": float(nats[:HELD_OUT].mean()), "sha256": source.sha256,
        })  # fmt: skip
    data = {"source": "train.jsonl", "validation": "valid.jsonl", "tokenizer": "tokenizer.json"}
    return {key: str(place / name) for key, name in data.items()} | {
        "length": length,
        "format": "prompts",
        "eos": "none",
    }


def entropy(data: dict[str, Any]) -> dict[str, Any]:
    """What is known of the source: its entropy in nats per token, over the draws that were written."""
    return dict(read_json(Path(data["source"]).parent / "source.json"))


def word(i: int) -> str:
    """The word of an id; in their order as words they are in the order of the ids."""
    return f"t{i:05d}"


FIRST_WORD = 2  # the tokenizer's id of word 0: what is unknown and what ends a text come before


def source_ids(tokens: Tensor) -> Tensor:
    """The model's ids as the source's; what stands for no word (an end of text that a model wrote) as the source's id 0."""
    return (tokens - FIRST_WORD).clamp(min=0)
