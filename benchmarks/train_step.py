"""One training step of redraft's `llama` network against transformers' LlamaForCausalLM of equal shape, on one device.

A step is forward, loss, backward, clipping and fused AdamW, on the same 4 x 512 tokens. Width 256, 6 layers, 4 heads,
hidden 1024, 32000 tokens, head untied. transformers runs as it comes (SDPA, its own loss from `labels`, no KV cache, no
gradient checkpointing); in bfloat16 both under autocast with float32 weights, and with all weights in bfloat16. redraft
in bfloat16 multiplies in bfloat16 and keeps float32 weights.

    python benchmarks/train_step.py --json docs/results/train_step.json
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from redraft.config import TrainConfig
from redraft.families.base import build
from redraft.network.flops import training_flops_per_token
from redraft.network.init import initialised
from redraft.network.sizes import from_size
from redraft.noise.counter_rng import Key
from redraft.training.optim import adamw
from redraft.types import Batch

ROWS, LENGTH, VOCAB = 4, 512, 32000
TOKENS = ROWS * LENGTH
RECIPE = TrainConfig()
Step = Callable[[], Tensor]
Make = Callable[[torch.device], Step]


def batch(device: torch.device) -> Tensor:
    return torch.randint(0, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)


def redraft(device: torch.device, name: str, block: str, compute: torch.dtype, **options: Any) -> Step:
    network = initialised(from_size("6M", block, VOCAB), 0, compute).to(device)
    family, optimizer, tokens = build(name, options, VOCAB), adamw(network, RECIPE), batch(device)
    rows = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(ROWS, device=device))

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = family.loss(network, rows, key=Key.of(0), progress=0.0).nats.sum() / TOKENS
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), RECIPE.clip)
        optimizer.step()
        return loss.detach()

    return step


def transformers(device: torch.device, autocast: bool, weights: torch.dtype) -> Step:
    shape = from_size("6M", "llama", VOCAB)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
    )
    model, tokens = LlamaForCausalLM(config).to(device, weights).train(), batch(device)
    optimizer = adamw(model, RECIPE)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss: Tensor = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        optimizer.step()
        return loss.detach()

    return step


F32, BF16 = torch.float32, torch.bfloat16
KINDS = ("float32", "bfloat16")
CASES: dict[str, Make] = {
    "redraft ar float32": lambda device: redraft(device, "ar", "llama", F32),
    "transformers float32": lambda device: transformers(device, False, F32),
    "redraft ar bfloat16": lambda device: redraft(device, "ar", "llama", BF16),
    "transformers autocast": lambda device: transformers(device, True, F32),
    "transformers all bfloat16": lambda device: transformers(device, False, BF16),
    "redraft mdlm bfloat16": lambda device: redraft(device, "mdlm", "dit", BF16),
    "redraft duo bfloat16": lambda device: redraft(device, "duo", "dit", BF16),
    "redraft esolm bfloat16": lambda device: redraft(device, "esolm", "dit", BF16, alpha_0=0.5),
}
# (ours, theirs, least speed, most memory): the targets; None where a comparison is for information.
TARGETS: list[tuple[str, str, float | None, float | None]] = [
    ("redraft ar float32", "transformers float32", 1.0, 0.6),
    ("redraft ar bfloat16", "transformers autocast", 1.7, 0.6),
    ("redraft ar bfloat16", "transformers all bfloat16", None, None),
    ("redraft ar bfloat16", "transformers float32", None, None),
]


def main(args: Namespace) -> None:
    ceilings = {f"ceiling {kind}": measure.product(getattr(torch, kind), device=args.device) for kind in KINDS}
    steps = {name: make(args.device) for name, make in CASES.items()}
    seconds = measure.take_turns({**steps, **ceilings}, args.repeats, args.device)
    peaks = {name: measure.peak_bytes(__file__, name, *measure.peak_words(args)) for name in CASES}
    step, flops = measure.medians(seconds), flops_per_step()
    ceiling = {d: 2 * 2048**3 / min(seconds[f"ceiling {d}"]) for d in KINDS}
    results, rows = {}, []
    for name in CASES:
        achieved = flops / step[name]
        of = achieved / ceiling["float32" if name.endswith("float32") else "bfloat16"]
        # The ledger counts the llama network and one pass: achieved FLOP/s are stated for it alone.
        counted = "ar" in name.split() or name.startswith("transformers")
        results[name] = {
            "seconds": step[name],
            "tokens_per_second": TOKENS / step[name],
            "flops_per_second": achieved if counted else None,
            "share_of_ceiling": of if counted else None,
            "peak_bytes_above_idle": peaks[name],
        }
        shown = (f"{achieved / 1e9:.0f}", f"{of:.0%}") if counted else ("", "")
        rows.append((name, f"{step[name]:.3f}", f"{TOKENS / step[name]:.0f}", *shown, f"{peaks[name] / 2**20:.0f}"))
    comparisons, verdicts = [], []
    for ours, theirs, least, most in TARGETS:
        speed, memory = measure.ratio(seconds, theirs, ours), peaks[ours] / peaks[theirs]
        best = measure.ratio_of_best(seconds, theirs, ours)
        comparisons.append(
            {"ours": ours, "theirs": theirs, "speed": speed, "speed_of_best": best, "memory": memory, "met": None}
        )
        verdict = "for information"
        if least is not None and most is not None:
            comparisons[-1]["met"] = speed >= least and memory <= most
            verdict = f"target speed >= {least}, memory <= {most}: {'met' if comparisons[-1]['met'] else 'MISSED'}"
        verdicts.append((f"{ours} / {theirs}", f"{speed:.2f}", f"{best:.2f}", f"{memory:.2f}", verdict))
    text = "\n\n".join([
        measure.table(("step", "seconds", "tokens/s", "GFLOP/s", "of ceiling", "peak MiB above idle"), rows),
        "matmul ceiling, GFLOP/s: " + ", ".join(f"{d} {c / 1e9:.0f}" for d, c in ceiling.items())
        + f"; a step of the llama network is {flops / 1e9:.0f} GFLOP (ledger `full`)",
        measure.table(("redraft / transformers", "speed", "of best turns", "memory", ""), verdicts),
    ])  # fmt: skip
    result = {
        "benchmark": "train_step",
        "machine": measure.machine(args.device),
        "shape": {"size": "6M", "rows": ROWS, "length": LENGTH, "vocab": VOCAB, "flops_per_step": flops},
        "ceiling_flops_per_second": ceiling,
        "steps": results,
        "comparisons": comparisons,
        "seconds": seconds,
    }
    measure.publish(result, text, args.json)


def flops_per_step() -> float:
    return TOKENS * training_flops_per_token(from_size("6M", "llama", VOCAB), LENGTH, "full")


def three_steps(name: str, device: torch.device) -> None:
    """The second step is the first with optimizer state; the third shows that the peak is reached."""
    step = CASES[name](device)
    for _ in range(3):
        step()


if __name__ == "__main__":
    parser = measure.arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--peak", choices=CASES, metavar="CASE", help="print the peak memory of one case, and no more")
    arguments = measure.parsed(parser)
    if arguments.peak:
        measure.report_peak(lambda: three_steps(arguments.peak, arguments.device), arguments.device)
    else:
        main(arguments)
