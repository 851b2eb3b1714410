"""Exported models are the same models: in a clean environment, as a stock Llama, in GGUF, and in what they draw."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import redraft
from redraft.cli import main
from redraft.errors import UserError
from redraft.families.base import AnyOrder, DiffusionFamily, Family, build
from redraft.families.esolm import EsoLM
from redraft.families.mdlm import MDLM
from redraft.hub.export import export as module
from redraft.hub.export.export import TARGETS, export
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Cosine, Linear
from redraft.registry import FAMILIES
from redraft.sampling.base import noise_of, sharpen
from redraft.text.tokenizers.tokenizer import load_tokenizer
from redraft.types import Attention, View, last
from tests.hub.models import BYTES, folder, network
from tests.hybrid import HybridFamily
from tests.rounding import CLOSE, in_float64, logits_apart

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

from redraft.hub.export.transformers_code import modeling_redraft, sampling_redraft  # noqa: E402
from redraft.hub.export.transformers_code.configuration_redraft import RedraftConfig  # noqa: E402
from redraft.hub.export.transformers_code.modeling_redraft import RedraftForMaskedLM  # noqa: E402

# family, block, options: every family, both blocks, and what changes the pattern of attention.
MODELS: list[tuple[str, str, dict[str, Any]]] = [
    ("ar", "llama", {}), ("ar", "dit", {}), ("mdlm", "llama", {}), ("mdlm", "dit", {"schedule": "cosine"}),
    ("duo", "dit", {}), ("esolm", "dit", {}), ("esolm", "llama", {"variant": "A", "alpha_0": 0.5}),
    ("bd3lm", "llama", {"block": 5}), ("gidd", "dit", {}), ("sedd", "dit", {}), ("d3pm", "dit", {}),
    ("xdlm", "dit", {}),
]  # fmt: skip


def name_of(case: tuple[str, str, dict[str, Any]]) -> str:
    return "-".join([case[0], case[1], *map(str, case[2].values())])


NAMES = [name_of(case) for case in MODELS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model as a native folder."""
    top = tmp_path_factory.mktemp("native")
    return {name_of(case): folder(top / name_of(case), case[0], case[1], case[2]) for case in MODELS}


@pytest.fixture(scope="module")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each as a folder for transformers."""
    top = tmp_path_factory.mktemp("exported")
    return {name: export(path, "transformers", top / name) for name, path in folders.items()}


def ids_for(family: str) -> Tensor:
    """Three rows of 11 ids, some of them [MASK] where the family has it."""
    ids = torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(5))
    if family not in ("ar", "duo"):
        ids[:, 1::3] = BYTES
    return ids


TIMES = torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64)


def loaded(path: Path) -> Any:
    """Ours, in float64 from its stored weights on; so are theirs wherever they can be."""
    model = redraft.load(path, "cpu")
    in_float64(model.network)
    return model


def opened(path: Path, kind: Any = transformers.AutoModelForCausalLM) -> Any:
    return kind.from_pretrained(path, trust_remote_code=True).double()


def ours(model: Any) -> Tensor:
    """log p [B, L, V] by redraft; of the L tokens after BOS for AR."""
    ids = ids_for(model.family.name)
    if model.family.name == "ar":
        hidden = model.network.trunk(model.family.view(model.family.shifted(ids)))
        return model.network.head(hidden).log_softmax(-1)
    return model.log_p(ids, t=TIMES if model.family.clocked else None)


CLEAN = """
import json, sys, importlib.abc
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "redraft":
            raise ImportError("redraft is not installed here")
sys.meta_path.insert(0, Blocked())
try:
    import redraft
    raise SystemExit("redraft can be imported")
except ImportError:
    pass
import torch, transformers
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
top, again = Path(sys.argv[1]), Path(sys.argv[2])
def distance(a, b):
    assert torch.equal(a.isinf(), b.isinf())
    return float((a - b).nan_to_num().abs().max())
@torch.no_grad()
def log_p(model, case):
    if model.config.family == "ar":
        bos = torch.full_like(case["ids"][:, :1], model.config.bos_token_id)
        return model(torch.cat([bos, case["ids"]], 1)).logits.log_softmax(-1)[..., :-1]
    return model.log_p(case["ids"], case["times"])
out = {}
for folder in sorted(top.iterdir()):
    case = load_file(folder / "expected.safetensors")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    kind = AutoModelForCausalLM if config.family == "ar" else AutoModelForMaskedLM
    model = kind.from_pretrained(folder, trust_remote_code=True).double()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("He said: é", return_tensors="pt")
    if config.family == "ar":
        new = model.generate(**ids, max_new_tokens=5)
    else:
        new = model.sample(ids.input_ids[0], length=16, steps=4)
    model.float().save_pretrained(again / folder.name)
    model.double()
    tokenizer.save_pretrained(again / folder.name)
    saved = kind.from_pretrained(again / folder.name, trust_remote_code=True).double()
    out[folder.name] = {
        "distance": distance(log_p(model, case), case["log_p"]),
        "again": distance(log_p(saved, case), case["log_p"]),
        "auto": type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__,
        "ids": ids.input_ids[0].tolist(), "new": new[0].tolist(),
        "again_ids": AutoTokenizer.from_pretrained(again / folder.name)("He said: é").input_ids,
    }
Path(sys.argv[3]).write_text(json.dumps(out))
"""


@pytest.fixture(scope="module")
def clean(
    folders: dict[str, Path], exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a Python that has no redraft says of each exported folder."""
    home = tmp_path_factory.mktemp("home")
    for name, path in exported.items():
        model = loaded(folders[name])
        expected = {"ids": ids_for(model.family.name), "times": TIMES, "log_p": ours(model).detach().contiguous()}
        save_file(expected, path / "expected.safetensors")
    top = next(iter(exported.values())).parent
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN, str(top), str(home / "again"), str(home / "said.json")],
        capture_output=True, text=True, env=environment, cwd=home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "said.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_clean_environment_opens_it_with_the_same_log_p(clean: dict[str, Any], name: str) -> None:
    assert clean[name]["distance"] < 1e-9
    assert clean[name]["auto"] == ("RedraftForCausalLM" if name.startswith("ar") else "RedraftForMaskedLM")


@pytest.mark.parametrize("name", NAMES)
def test_saved_from_there_it_opens_again(clean: dict[str, Any], name: str) -> None:
    assert clean[name]["again"] < 1e-9
    assert clean[name]["again_ids"] == clean[name]["ids"]


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_text_after_the_prompt_as_our_tokenizer_cuts_it(clean: dict[str, Any], name: str) -> None:
    before = [BYTES] * name.startswith("ar") + list("He said: é".encode())
    assert clean[name]["ids"] == before
    assert clean[name]["new"][: len(before)] == before and len(clean[name]["new"]) > len(before)
    assert all(token < BYTES for token in clean[name]["new"][len(before) :])


# What an exported model is to transformers


@pytest.fixture(params=["ar-llama", "ar-dit"])
def writer(request: pytest.FixtureRequest, exported: dict[str, Path]) -> Any:
    return opened(exported[request.param])


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(exported: dict[str, Path]) -> None:
    for name, path in exported.items():
        causal = name.startswith("ar")
        kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
        model = opened(path, kind)
        row = ids_for(model.config.family)[:1]
        alone = model(row).logits
        for before, after in ((3, 0), (0, 4)):
            padded = torch.nn.functional.pad(row, (before, after), value=7)
            mask = torch.nn.functional.pad(torch.ones_like(row), (before, after))
            seen = model(padded, attention_mask=mask).logits[:, before : before + row.shape[1]]
            assert torch.allclose(seen, alone, **CLOSE), name


@torch.no_grad()
def test_generation_with_a_cache_in_a_padded_batch_is_each_row_alone(writer: Any) -> None:
    rows = [[BYTES, 72, 101], [BYTES, 72], [BYTES, 1, 2, 3, 4, 5]]
    alone = []
    for row in rows:
        tokens = torch.tensor([row])
        for _ in range(8):
            tokens = torch.cat([tokens, writer(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        alone.append(tokens[0, len(row) :].tolist())
    padded = torch.tensor([[256] * (6 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (6 - len(row)) + [1] * len(row) for row in rows])
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    together = writer.generate(padded, attention_mask=mask, **settings)
    assert together[:, 6:].tolist() == alone
    beams = writer.generate(padded[:1], attention_mask=mask[:1], num_beams=3, **settings)
    assert beams.shape == (1, 14) and int(beams[:, 6:].max()) < BYTES


def test_the_loss_of_text_after_bos_is_ours_in_nats_a_token(
    folders: dict[str, Path], exported: dict[str, Path]
) -> None:
    model, theirs = loaded(folders["ar-llama"]), opened(exported["ar-llama"])
    text = "It was the best of it"
    ids = torch.tensor([[BYTES, *text.encode()]])
    (score,) = model.score(text)
    assert theirs(ids, labels=ids).loss.item() == pytest.approx(score.nats / score.tokens, rel=1e-9)


def test_generate_draws_from_the_whole_distribution(writer: Any) -> None:
    settings = writer.generation_config
    assert (settings.do_sample, settings.top_k, settings.top_p, settings.temperature) == (True, 0, 1.0, 1.0)
    assert (settings.bos_token_id, settings.eos_token_id) == (BYTES, 256)
    assert writer.generate(max_new_tokens=1)[0, 0] == BYTES


# What a diffusion family draws. V = 3 ids and L = 2 or 3 tokens: everything can be enumerated.

V = 3


def tiny(family: str, block: str, options: dict[str, Any], length: int) -> tuple[Any, Transformer, RedraftForMaskedLM]:
    """A family, its network, and both as an exported model."""
    made, own = in_float64(network(block, V, seed=3)), build(family, options, V)
    resolved = {**module.FAMILIES[family].options, **options}
    config = RedraftConfig(family, resolved, module._process(own), block, V + 1, 16, 2, 2, 40, made.shape.cond, length)
    theirs = RedraftForMaskedLM(config).double().eval()
    theirs.load_state_dict({module._trunk_name(name): tensor for name, tensor in made.state_dict().items()})
    return own, made, theirs


CLOCKS: list[tuple[str, dict[str, Any]]] = [
    ("mdlm", {}), ("mdlm", {"schedule": "cosine"}), ("mdlm", {"schedule": "linear"}), ("duo", {}),
    ("duo", {"schedule": "linear"}), ("gidd", {}), ("gidd", {"uniform": 0.0}), ("gidd", {"uniform": 0.4}), ("sedd", {}),
    ("d3pm", {}), ("xdlm", {}), ("xdlm", {"uniform": 1.0, "schedule": "cosine"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "options"), CLOCKS)
def test_a_reverse_step_has_our_law(family: str, options: dict[str, Any]) -> None:
    own, _, theirs = tiny(family, "dit", options, 2)
    assert isinstance(own, DiffusionFamily)
    process = sampling_redraft.Process(theirs.config)
    states = V if family == "duo" else V + 1
    p0 = torch.rand(states, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p0 /= p0.sum(-1, keepdim=True)
    xt = torch.arange(states)
    for t, s in ((1.0, 0.9), (1.0, 0.0), (0.7, 0.2), (0.3, 0.0)):
        t, s = torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
        law = own.posterior(p0[:, None], xt[:, None], t.expand(states, 1), s.expand(states, 1))[:, 0]
        marginal = own.marginal(torch.arange(V)[:, None], t.expand(V, 1))
        seen = (marginal > 0).any(0)[0]  # states that can be there at t
        mine = process.posterior(p0, xt, t, s)[:, : law.shape[1]]
        assert torch.allclose(mine[seen], law[seen], atol=1e-12)
        sigma = own.view(xt[:, None], t.expand(states, 1)).sigma
        assert sigma is None or torch.allclose(process.sigma(t), sigma, atol=1e-12)


class Paths:
    """Stands for `categorical`: draws what it is told to, keeps the probability, and counts through every way to go on."""

    def __init__(self) -> None:
        self.script: list[int] = []

    def __iter__(self) -> Iterator[None]:
        while True:
            self.at, self.sizes, self.p = 0, list[int](), 1.0
            yield
            self.script = self.script[: self.at]
            while self.script and self.script[-1] == self.sizes[len(self.script) - 1] - 1:
                self.script.pop()
            if not self.script:
                return
            self.script[-1] += 1

    def __call__(self, p: Tensor, generator: Any) -> Tensor:
        out = []
        for row in p:
            possible = row.nonzero()[:, 0]
            if self.at == len(self.script):
                self.script.append(0)
            self.sizes[self.at :] = [len(possible)]
            token = possible[self.script[self.at]]
            self.p *= float(row[token] / row.sum())
            self.at += 1
            out.append(int(token))
        return torch.tensor(out, dtype=torch.int64)


def law_of(sample: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], float]:
    """The exact distribution of what `sample` writes in one row, by going every way its draws can go."""
    paths, law = Paths(), dict[tuple[int, ...], float]()
    monkeypatch.setattr(sampling_redraft, "categorical", paths)
    monkeypatch.setattr(modeling_redraft, "categorical", paths)
    for _ in paths:
        text = tuple(sample()[0].tolist())
        law[text] = law.get(text, 0.0) + paths.p
    return law


@torch.no_grad()
def our_chain(own: DiffusionFamily, made: Transformer, length: int, steps: int, temperature: float) -> dict[Any, float]:
    """The reverse chain over all states, by its definition."""
    states = list(itertools.product(range(V + 1), repeat=length))
    one = torch.ones(1, 1, dtype=torch.float64)
    kinds = own.posterior(torch.full((1, 1, V), 1 / V, dtype=torch.float64), torch.zeros(1, 1).long(), one, one / 2)
    noise = own.marginal(torch.zeros(1, 1, dtype=torch.int64), one)[0, 0]
    left = float(own.schedule(one)[0])
    noise[0] -= left
    noise = noise / (1 - left)
    weight = {x: math.prod(float(noise[k]) if k < len(noise) else 0.0 for k in x) for x in states}
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        after = dict.fromkeys(states, 0.0)
        for x in (x for x in states if weight[x] > 0):
            xt = torch.tensor([x])
            p0 = sharpen(own.log_p(made, xt, t[None], None)[0], temperature, 1.0).double().exp()[None]
            law = own.posterior(p0, xt, t.reshape(1, 1), s.reshape(1, 1))[0]
            for y in itertools.product(range(kinds.shape[-1]), repeat=length):
                after[y] += weight[x] * math.prod(float(law[place, k]) for place, k in enumerate(y))
        weight = after
    return {x: w for x, w in weight.items() if w > 0}


# Two tokens, which the one sampler draws alike in every family; one where every step may draw any of the ids and the mask.
@pytest.mark.parametrize(("family", "options", "length", "steps", "temperature"), [
    ("mdlm", {}, 2, 3, 1.0), ("mdlm", {"schedule": "cosine"}, 2, 2, 0.7), ("duo", {}, 2, 2, 1.0), ("gidd", {}, 2, 2, 1.3),
    ("sedd", {}, 2, 2, 1.0), ("d3pm", {}, 2, 2, 1.0), ("xdlm", {}, 1, 3, 1.0),
])  # fmt: skip
def test_samples_have_the_law_of_our_reverse_chain(
    family: str, options: dict[str, Any], length: int, steps: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, made, theirs = tiny(family, "dit", options, length)
    law = law_of(lambda: theirs.sample(steps=steps, temperature=temperature), monkeypatch)
    chain = our_chain(own, made, length, steps, temperature)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    for text in itertools.product(range(V), repeat=length):
        assert law.get(text, 0.0) == pytest.approx(chain.get(text, 0.0), abs=1e-9)


@pytest.mark.parametrize(("family", "options", "steps"), [
    ("esolm", {"alpha_0": 1.0}, 1000), ("esolm", {"alpha_0": 0.5}, 1000), ("esolm", {"alpha_0": 0.0}, 1),
    ("esolm", {"alpha_0": 1.0, "variant": "A"}, 1000), ("bd3lm", {"block": 2}, 0), ("bd3lm", {"block": 3}, 1000),
])  # fmt: skip
@torch.no_grad()
def test_one_token_a_call_has_the_exact_likelihood_of_its_order(
    family: str, options: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`u` says when a token is written: with so many steps, each in a call of its own."""
    own, made, theirs = tiny(family, "llama", options, 3)
    u = torch.tensor([[0.7, 0.2, 0.45]], dtype=torch.float64)
    monkeypatch.setattr(sampling_redraft, "uniforms", lambda like, generator: u[:, : like.shape[1]])
    place = torch.arange(3)
    if family == "esolm":
        when = torch.where(u < options["alpha_0"], u, 1 + place)
    else:  # the same uniforms serve every block, from its first token on
        when = place // options["block"] + u[:, place % options["block"]]
    order = when.argsort(1)
    law = law_of(lambda: theirs.sample(steps=steps), monkeypatch)
    assert isinstance(own, AnyOrder)
    for text in itertools.product(range(V), repeat=3):
        x0 = torch.tensor([text])
        nats = own.chain_nats(made, x0, torch.ones_like(x0, dtype=torch.bool), order).sum()
        assert law[text] == pytest.approx(math.exp(-float(nats)), abs=1e-9)


@pytest.mark.parametrize("variant", ["A", "B"])
@torch.no_grad()
def test_tokens_of_one_call_are_written_causally_in_their_order(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, made, theirs = tiny("esolm", "llama", {"variant": variant}, 3)
    assert isinstance(own, EsoLM)
    u = torch.tensor([[0.7, 0.2, 0.45]], dtype=torch.float64)
    monkeypatch.setattr(sampling_redraft, "uniforms", lambda like, generator: u)
    law = law_of(lambda: theirs.sample(steps=1), monkeypatch)
    log_p = own.log_p(made, torch.full((1, 3), V), None, u.argsort(1))[0]
    for text in itertools.product(range(V), repeat=3):
        expected = log_p.gather(1, torch.tensor(text)[:, None]).sum().exp()
        assert law[text] == pytest.approx(float(expected), abs=1e-9)


def test_categoricals_are_inverted_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """An even grid of N uniforms draws each id N p times, up to the two ends of its interval."""
    p = torch.tensor([0.0, 0.25, 1e-4, 0.0, 0.7499, 0.0], dtype=torch.float64)
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    monkeypatch.setattr(sampling_redraft, "uniforms", lambda like, generator: grid)
    drawn = sampling_redraft.categorical(p.expand(len(grid), -1), None).bincount(minlength=6)
    assert (drawn - p * len(grid)).abs().max() <= 1
    monkeypatch.setattr(sampling_redraft, "uniforms", lambda like, generator: torch.tensor([0.0, 1.0]))
    assert sampling_redraft.categorical(p.expand(2, -1), None).tolist() == [1, 4]


def test_prompts_stay_and_a_seed_repeats(exported: dict[str, Path]) -> None:
    for name, path in exported.items():
        if name.startswith("ar"):
            continue
        model = transformers.AutoModelForMaskedLM.from_pretrained(path, trust_remote_code=True)
        prompt = torch.tensor([1, 2, 3])
        first, again, other = (
            model.sample(prompt, n=2, length=12, steps=3, generator=torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again) and not torch.equal(first, other), name
        assert (first[:, :3] == prompt).all() and first.shape == (2, 12) and int(first.max()) < BYTES


# Every registered family, and one that is new


def test_every_registered_family_is_exported_here() -> None:
    assert {family for family, _, _ in MODELS} == set(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_an_export_are_redrafts_token_for_token(
    name: str, folders: dict[str, Path], exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 0 chance decides the prior and the order of writing alone; redraft's are handed to the export. More
    steps than one would draw when each token shows up, which the two do in different ways."""
    model, steps = loaded(folders[name]), 3 if name.startswith("esolm") else 1
    frames = model.sample("He said", n=2, length=16, steps=steps, temperature=0, stream=True)
    expected = last(frames).tokens
    if model.family.spare == "bos":
        prompt = torch.tensor([[BYTES, *b"He said"]] * 2)
        drawn = opened(exported[name]).generate(prompt, do_sample=False, max_new_tokens=9, eos_token_id=None)[:, 1:]
    else:
        noise = noise_of(model.canvas("He said", 2, 16), Key.of(0).fold_in("sample"))
        prior = model.family.prior(noise)
        given = iter([noise("when"), noise("order")])
        theirs = opened(exported[name], transformers.AutoModelForMaskedLM)
        code = sys.modules[type(theirs).__module__].ancestral.__globals__
        monkeypatch.setitem(code, "categorical", lambda p, generator: prior.flatten())
        halves = lambda like, _: next(given) if like.shape == prior.shape else like * 0.5
        monkeypatch.setitem(code, "uniforms", halves)
        drawn = theirs.sample(torch.tensor(list(b"He said")), n=2, length=16, steps=steps, temperature=0)
    assert drawn.tolist() == expected.tolist()


@dataclass(frozen=True)
class Renamed(MDLM):
    """A masked family of another name, which writes as MDLM does."""

    name: ClassVar[str] = "renamed"


@dataclass(frozen=True)
class Redefined(MDLM):
    """One that sees otherwise, and does not say how exported code should."""

    name: ClassVar[str] = "redefined"

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return dataclasses.replace(super().view(tokens, t), attention=Attention.CAUSAL)


@dataclass(frozen=True)
class Slow(Linear):
    """A schedule that has no name."""


def with_family(path: Path, family: Family) -> redraft.hub.model.Model:
    return dataclasses.replace(redraft.load(path, "cpu"), family=family)


def test_a_new_family_is_exported_as_what_it_states(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "renamed", FAMILIES["mdlm"])
    model = with_family(folders["mdlm-dit-cosine"], Renamed(BYTES, schedule=Cosine()))
    config = json.loads((export(model, "transformers", tmp_path / "renamed") / "config.json").read_text())
    assert config["process"] == {"kind": "absorbing", "clocked": False, "schedule": "cosine"}
    assert config["mask_token_id"] == BYTES and config["architectures"] == ["RedraftForMaskedLM"]


@pytest.mark.parametrize(("family", "why"), [
    (Redefined(BYTES), "no sampler that family 'redefined' states as its own"),
    (HybridFamily(BYTES, (1 / (BYTES + 1),) * (BYTES + 1)), "no sampler that family 'hybrid' states"),
    (MDLM(BYTES, schedule=Slow()), "knows the schedules linear, log_linear, cosine, not Slow"),
])  # fmt: skip
def test_a_family_that_states_no_process_is_refused_in_one_line(
    family: Family, why: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=why) as caught:
        export(with_family(folders["mdlm-dit-cosine"], family), "transformers", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("name", ["ar-llama", "mdlm-dit-cosine"])
def test_rotary_angles_of_another_base_come_along(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = loaded(folders[name])
    model.network.shape = dataclasses.replace(model.network.shape, theta=50.0)
    expected, causal = ours(model), name.startswith("ar")
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    ids = ids_for(model.family.name)
    tokens = torch.cat([torch.full((3, 1), BYTES), ids], 1) if causal else ids
    for target in ("transformers", "llama") if causal else ("transformers",):
        theirs = opened(export(model, target, tmp_path / target), kind)
        logits = theirs(tokens).logits[..., :BYTES].log_softmax(-1)
        seen = logits if causal else theirs.log_p(tokens)
        assert torch.allclose(seen, expected, atol=1e-6), target
    assert not torch.allclose(expected, ours(loaded(folders[name])), atol=1e-3)


def test_a_clock_that_exported_code_does_not_know_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = redraft.load(folders["gidd-dit"], "cpu")
    model.network.shape = dataclasses.replace(model.network.shape, clock=0.1)
    with pytest.raises(UserError, match="does not know the clock"):
        export(model, "transformers", tmp_path / "out")


def test_exported_code_refuses_a_process_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="no process 'another'"):
        sampling_redraft.Process(RedraftConfig(process={"kind": "another", "clocked": False}))


# A stock Llama, and GGUF


@torch.no_grad()
def test_an_ar_llama_is_a_stock_llama(folders: dict[str, Path], tmp_path: Path) -> None:
    into = export(folders["ar-llama"], "llama", tmp_path / "llama")
    stock, model = transformers.AutoModelForCausalLM.from_pretrained(into), redraft.load(folders["ar-llama"], "cpu")
    assert type(stock) is transformers.LlamaForCausalLM and not list(into.glob("*.py"))
    ids = ids_for("ar")
    tokens = torch.cat([torch.full((3, 1), BYTES), ids], 1)
    head = model.network.head(model.network.trunk(model.family.view(tokens)))  # type: ignore[attr-defined]
    logits = stock(tokens).logits
    off = logits_apart(model.network.shape, tokens.shape[1], float(head.abs().max()))
    assert (logits[..., :BYTES] - head).abs().max() < off
    spare = logits.log_softmax(-1)[..., BYTES].exp()
    assert spare.max() <= 1 / (BYTES + 1)
    lost = head.log_softmax(-1) - logits.log_softmax(-1)[..., :BYTES]
    assert lost.min() > -2 * off and lost.max() <= math.log(1 + 1 / BYTES) + 2 * off
    new = stock.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20)
    assert int(new[:, 1:].max()) < BYTES
    tokenizer = transformers.AutoTokenizer.from_pretrained(into)
    assert tokenizer("a é").input_ids == [BYTES, *"a é".encode()]


@torch.no_grad()
def test_gguf_holds_the_same_llama(folders: dict[str, Path], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    into = export(folders["ar-llama"], "gguf", tmp_path / "gguf")
    model = redraft.load(folders["ar-llama"], "cpu")
    fields = gguf.GGUFReader(into / "model.gguf").fields
    assert fields["general.architecture"].contents() == "llama" and fields["llama.block_count"].contents() == 2
    assert fields["tokenizer.ggml.bos_token_id"].contents() == BYTES
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False
    network = transformers.AutoModelForCausalLM.from_pretrained(into, gguf_file="model.gguf", dtype=torch.float32)
    tokens = torch.cat([torch.full((3, 1), BYTES), ids_for("ar")], 1)
    head = model.network.head(model.network.trunk(model.family.view(tokens)))  # type: ignore[attr-defined]
    off = logits_apart(model.network.shape, tokens.shape[1], float(head.abs().max()))
    assert (network(tokens).logits[..., :BYTES] - head).abs().max() < off
    tokenizer = transformers.AutoTokenizer.from_pretrained(into, gguf_file="model.gguf")
    text = "a  é\n\t😀 <0x41>"
    # transformers puts a space before the text whatever the file says
    assert tokenizer(text).input_ids == [BYTES, 32, *text.encode()]


# Folders and refusals


@pytest.mark.parametrize(("name", "target", "why", "instead"), [
    ("mdlm-llama", "llama", "does not write left to right", "transformers, hf, gguf, native"),
    ("duo-dit", "gguf", "no layout of others for family 'duo'", "transformers, native"),
    ("ar-dit", "llama", "blocks are 'dit'", "transformers, native"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(
    name: str, target: str, why: str, instead: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=why) as caught:
        export(folders[name], target, tmp_path / "out")
    assert str(caught.value).endswith(f"Try: {instead}.") and not (tmp_path / "out").exists()


def test_unknown_targets_and_full_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown target 'lama'. Did you mean 'llama'"):
        export(folders["ar-llama"], "lama", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="out is not empty"):
        export(folders["ar-llama"], "llama", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_a_folder_appears_whole_or_not_at_all(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(model: Any, into: Path) -> None:
        (into / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(TARGETS, "native", torn)
    with pytest.raises(KeyboardInterrupt):
        export(folders["ar-llama"], "native", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_native_folder_is_the_model_with_its_options(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("mdlm-dit-cosine", "esolm-llama-A-0.5"):
        again = redraft.load(export(folders[name], "native", tmp_path / name), "cpu")
        model = redraft.load(folders[name], "cpu")
        assert again.family == model.family and again.length == model.length
        assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
        theirs = load_tokenizer(tmp_path / name / "tokenizer.json")  # what other programs read
        assert theirs.encode("déjà vu\n").tolist() == model.tokenizer.encode("déjà vu\n").tolist()
        ids = ids_for(model.family.name)
        assert torch.equal(again.log_p(ids), model.log_p(ids))


def test_the_command_says_what_it_wrote(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "export",
        str(folders["mdlm-llama"]),
        "--to",
        "transformers",
        "--into",
        str(tmp_path / "out"),
        "--json",
    ]
    main(arguments)
    said = json.loads(capsys.readouterr().out)
    assert set(said["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "modeling_redraft.py", "tokenizer.json", "model.safetensors"} <= set(said["files"])
    with pytest.raises(SystemExit):
        main(arguments)
    assert "is not empty" in capsys.readouterr().err
