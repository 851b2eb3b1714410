"""Tokens a second of redraft's left-to-right sampler against transformers' `generate`, both with a KV cache, on one device.

The networks of `train_step.py`, random weights, float32, plain sampling from the whole distribution at temperature 1,
a prompt of one token and 256 new ones. redraft runs what `Model.frames` runs, a float64 categorical draw included, and
puts BOS before the prompt. transformers runs with `top_k=0`, for its default of 50 is another distribution, and with no
end-of-text token, so that both write every token.

    python benchmarks/sample_step.py --json docs/results/sample_step.json
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import measure
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import from_size
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.types import Canvas

VOCAB, NEW, BATCHES, TARGET = 32000, 256, (1, 8), 1.5


def redraft(rows: int, new: int, device: torch.device) -> Callable[[], Tensor]:
    shape = from_size("6M", "llama", VOCAB)
    model = Model(build("ar", {}, VOCAB), initialised(shape, 0).to(device), Bytes(), new + 1, {})
    fixed = torch.zeros(rows, new + 1, dtype=torch.bool, device=device)
    fixed[:, 0] = True
    unwritten = Canvas(torch.ones(rows, new + 1, dtype=torch.int64, device=device), fixed)

    def run() -> Tensor:
        *_, finished = model.frames(unwritten, model.denoiser(), "", 0, seed=0)
        return finished.tokens

    return run


def transformers(rows: int, new: int, device: torch.device) -> Callable[[], Tensor]:
    shape = from_size("6M", "llama", VOCAB)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=2 * NEW,
        tie_word_embeddings=False,
        eos_token_id=None,  # its default would end one text in a hundred early
    )
    model, prompt = LlamaForCausalLM(config).eval().to(device), torch.ones(rows, 1, dtype=torch.int64, device=device)
    how = GenerationConfig(
        do_sample=True, top_k=0, use_cache=True, max_new_tokens=new, eos_token_id=None, pad_token_id=0
    )
    seen = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=seen, generation_config=how)


def main(args: Namespace) -> None:
    new = 32 if args.quick else NEW
    cases = {(who, rows): make(rows, new, args.device) for rows in BATCHES for who, make in MAKERS.items()}
    for (who, rows), run in cases.items():
        assert run().shape == (rows, new + 1), who
    seconds = measure.take_turns(
        {f"{who} batch {rows}": run for (who, rows), run in cases.items()}, args.repeats, args.device
    )
    median = measure.medians(seconds)
    per_second = {f"{who} batch {rows}": rows * new / median[f"{who} batch {rows}"] for who, rows in cases}
    rows_of_table = [(name, f"{median[name]:.3f}", f"{speed:.0f}") for name, speed in per_second.items()]
    pairs = {rows: (f"transformers batch {rows}", f"redraft batch {rows}") for rows in BATCHES}
    speeds = {rows: measure.ratio(seconds, *pair) for rows, pair in pairs.items()}
    best = {rows: measure.ratio_of_best(seconds, *pair) for rows, pair in pairs.items()}
    verdicts = [
        (
            f"batch {rows}",
            f"{speed:.2f}",
            f"{best[rows]:.2f}",
            f"target >= {TARGET}: {'met' if speed >= TARGET else 'MISSED'}",
        )
        for rows, speed in speeds.items()
    ]
    text = "\n\n".join([
        measure.table(("generation", "seconds", "tokens/s"), rows_of_table),
        measure.table(("redraft / transformers", "speed", "of best turns", ""), verdicts),
    ])  # fmt: skip
    result = {
        "benchmark": "sample_step",
        "machine": measure.machine(args.device),
        "shape": {"size": "6M", "prompt": 1, "new": new, "vocab": VOCAB, "dtype": "float32"},
        "tokens_per_second": per_second,
        "comparisons": [
            {"rows": rows, "speed": speed, "speed_of_best": best[rows], "met": speed >= TARGET}
            for rows, speed in speeds.items()
        ],
        "seconds": seconds,
    }
    measure.publish(result, text, args.json)


MAKERS = {"redraft": redraft, "transformers": transformers}

if __name__ == "__main__":
    main(measure.parsed(measure.arguments(str(__doc__).splitlines()[0])))
