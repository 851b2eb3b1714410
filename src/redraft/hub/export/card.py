"""The model card (README.md): the model, its record, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.display import quantity
from redraft.families.ar import SPARE
from redraft.hub.export.tokenizer_json import definition
from redraft.hub.model import Model
from redraft.registry import FAMILIES

LOAD = {
    "native": """```python
import redraft

model = redraft.load(".")
print(model.sample("Once", n=1, length={length}, steps=64)[0])
```""",
    "transformers": """With redraft no code of this folder is run: `redraft.load("RUN")` reads the run that this was made of,
or what `redraft export RUN --to native --into DIR` makes of it, as data alone.

With transformers the model's code comes along, in the `*_redraft.py` beside the weights. `trust_remote_code=True` lets
transformers run it, with all the rights that your Python has: read these files first, and name a fixed `revision` where you
load from the hub, for what is there may change. Without the flag the model cannot be loaded this way.

```python
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained(".")
model = {auto}.from_pretrained(".", trust_remote_code=True)
{write}
```

{convention}""",
    "llama": """```python
from transformers import AutoTokenizer, AutoModelForCausalLM

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
{write}
```

{convention} The head has a row for BOS too, which the model never had. It is the mean of the others, so that BOS has at
most the probability 1 / (V + 1): log-probabilities of text differ from redraft's by at most log(1 + 1 / V), and its logits do
not. `generate` suppresses BOS, and so draws exactly as redraft does.""",
    "hf": """The layout is one that other programs read without our code, in the class that config.json names.{stands}

{convention}""",
    "gguf": """`model.gguf` is in float32. Text follows BOS, which its tokenizer puts there. The head's row for BOS is the mean
of the others, so that BOS, which is never to be drawn, has at most the probability 1 / (V + 1).""",
}
WRITE = {
    True: """inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))""",
    False: """prompt = tokenizer("Once", return_tensors="pt").input_ids[0]
print(tokenizer.batch_decode(model.sample(prompt, n=2, length={length}, steps=64)))""",
}
CONVENTION = {
    True: """Text follows BOS (id V = {vocab}), which the tokenizer puts there: `logits[:, i]` are of token i + 1, the first
token of the text is paid for, and the loss with `labels=input_ids` is redraft's, in nats per token.""",
    False: """`logits[:, i]` are of the clean token at position i, unnormalised, with a last column that has no probability for
the spare id {vocab}. `model.log_p(ids, timesteps)` is normalised, and carries visible tokens over where [MASK] hides the text.
Times run from 0 (text) to 1 (noise).""",
}


def card(model: Model, target: str) -> str:
    """Markdown with the hub's header. `target`: what kind of folder it lies in."""
    front = {
        "library_name": "transformers"
        if target in ("transformers", "llama", "hf")
        else target.replace("native", "redraft"),
        "tags": ["redraft", model.family.name],
        **({"pipeline_tag": "text-generation"} if model.family.spare == "bos" else {}),
    }
    title = f"{model.family.name} with {quantity(sum(model.parameters.values()))} parameters"
    parts = [
        _front(front),
        f"# {title}",
        f"{FAMILIES[model.family.name].summary[:1].upper()}{FAMILIES[model.family.name].summary[1:]}. "
        f"Trained on rows of {model.length} tokens; made with redraft.",
        *(["## Record", _table(facts(model))]),
        "## Load",
        _load(model, target),
    ]
    return "\n\n".join(parts) + "\n"


def facts(model: Model) -> dict[str, str]:
    """What the record says, by line; what it does not say is left out."""
    shape, record = model.network.shape, model.record
    data = record.get("data") or {}
    counts = ", ".join(f"{group} {quantity(count)}" for group, count in model.parameters.items())
    out = {
        "Family": f"{model.family.name}{_options(record.get('options') or {})}",
        "Network": f"{shape.block}, {shape.depth} layers, {shape.heads} heads, width {shape.width}, hidden {shape.hidden}",
        "Parameters": counts,
        "Tokenizer": f"{model.tokenizer.name}, {model.tokenizer.size} ids",
        "Budget": _budget(record),
        "Data": _data(data),
        "Loss": _loss(record),
        "Bits per byte": _number(record.get("bits_per_byte")),
        "Seed": str(record["seed"]) if "seed" in record else "",
        "Started from": str((record.get("start") or {}).get("sha256", "")),
    }
    return {key: value for key, value in out.items() if value}


def _options(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else ""


def _budget(record: Mapping[str, Any]) -> str:
    """FLOPs stand beside the convention that counted them."""
    if "flops" not in record:
        return ""
    return (
        f"{record['flops']:.3g} FLOPs (counted as {record.get('convention', 'unknown')}), "
        f"{quantity(record.get('tokens', 0))} tokens in {record.get('steps', 0)} steps of {record.get('batch', 0)} rows"
    )


def _data(data: Mapping[str, Any]) -> str:
    if "source" not in data:
        return ""
    digest = f", sha256 {data['sha256']}" if data.get("sha256") else ""
    epochs = f", {data['epochs']:.3g} epochs" if "epochs" in data else ""
    return f"{data['source']}{digest}{epochs}"


def _loss(record: Mapping[str, Any]) -> str:
    """Nats per token, with the error of the Monte Carlo draws and that of the sample of windows."""
    if record.get("loss") is None:
        return ""
    kind = "exact" if record.get("loss_kind") == "exact" else "an upper bound"
    errors = {"Monte Carlo s.e.": record.get("loss_se"), "s.e. over windows": record.get("loss_sampling_se")}
    shown = "".join(f"; {name} {value:.4f}" for name, value in errors.items() if value)
    return f"{record['loss']:.4f} nats/token ({kind}{shown}), {record.get('windows', 0)} held-out windows"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _front(table: Mapping[str, Any]) -> str:
    lines = []
    for key, value in table.items():
        lines += [f"{key}:", *(f"- {item}" for item in value)] if isinstance(value, list) else [f"{key}: {value}"]
    return "\n".join(["---", *lines, "---"])


def _table(rows: Mapping[str, str]) -> str:
    escaped = {key: value.replace("|", r"\|").replace("\n", " ") for key, value in rows.items()}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in escaped.items())])


def _beginning(model: Model) -> str:
    """What precedes a text of an AR model."""
    bos = getattr(model.family, "bos", "spare")
    if bos == "none":
        return "Nothing precedes a text: its first token is given, and has no probability."
    return f"Text follows BOS (id {model.family.vocab if bos == 'spare' else bos}), which the tokenizer puts there."


def _stands(model: Model) -> str:
    """Where a masked model predicts."""
    if not hasattr(model.family, "shift"):
        return ""
    return " `logits[:, i]` are of token i + 1." if model.family.shift else " `logits[:, i]` are of token i."


def _load(model: Model, target: str) -> str:
    causal = model.family.spare == "bos"
    fill = {
        "length": model.length,
        "vocab": model.family.vocab,
        "auto": "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM",
    }
    fill |= {"write": WRITE[causal].format(**fill), "convention": CONVENTION[causal].format(**fill)}
    if target in ("hf", "llama"):
        target = "llama" if causal and getattr(model.family, "bos", SPARE) == SPARE else "hf"
        fill["stands"] = _stands(model)
        fill["convention"] = fill["convention"] if target == "llama" else _beginning(model) if causal else ""
    text = LOAD[target].format(**fill).rstrip()
    if target in ("transformers", "llama") and definition(model.tokenizer) is None:
        text += (
            "\n\nThe tokenizer is a sentencepiece model, `tokenizer.model`, which has no tokenizer.json (it is no BPE, or "
            "changes text first): encode with the package sentencepiece"
            + (f" and put BOS ({model.family.vocab}) before the text." if causal else ".")
        )
    return text
