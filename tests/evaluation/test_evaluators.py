"""Judges: nats by the definition, the same for any batch, and one line for what is no judge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.errors import UserError
from redraft.evaluation.generation.evaluator_files import load_evaluator
from redraft.evaluation.generation.evaluators import RedraftEvaluator, by_windows, ratio
from redraft.families.base import build
from redraft.hub.model import Model
from redraft.text.tokenizers.tokenizer import Bytes, Ids, Tokenizer, load_tokenizer
from tests.laws.test_sampling import small_network
from tests.rounding import of_sums

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260k" / "stories260K.bin"
TEXTS = ["ab ba abba", "a", "bb aa b"]


def rows_of(texts: list[str]) -> torch.Tensor:
    """Bytes, filled up with ends of document, which leave nothing behind."""
    width = max(map(len, texts))
    return torch.tensor([[*text.encode(), *[256] * (width - len(text))] for text in texts])


def redraft_judge(length: int = 64) -> RedraftEvaluator:
    return RedraftEvaluator.of(
        Model(build("ar", {}, 257), small_network(257), load_tokenizer("bytes"), length, {}), "small"
    )


class Foreign(Tokenizer):
    """Bytes by another name."""

    name, size, eos, fingerprint, cuts_long_text = "foreign", 257, 256, "other", False

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def _ids(self, text: str) -> Ids:
        return Bytes()._ids(text)

    def _text(self, ids: Ids) -> str:
        return Bytes()._text(ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a byte-level tokenizer, as `transformers` saves it."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Engine(models.BPE({piece: i for i, piece in enumerate([*alphabet, "<|endoftext|>"])}, []))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    place = tmp_path_factory.mktemp("judge")
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(place)
    fast.save_pretrained(place)
    return place


def loaded(folder: Path) -> Any:
    """Judges are read in float32; what they say is compared in float64."""
    judge: Any = load_evaluator(folder)
    judge.network.double()
    return judge


def test_nats_of_a_causal_model_are_those_of_its_own_loss(folder: Path) -> None:
    """Its loss is made in float32 of float64 logits: each is rounded, and a sum over V taken of them. These are below 1, so a
    loss near log V is off by no more than its share."""
    judge, off = loaded(folder), of_sums(257)
    scores = judge.score(rows_of(TEXTS[1:]), Bytes())
    for text, nats in zip(TEXTS[1:], scores.nats.tolist()):
        ids = torch.tensor([[judge.begin, *judge.encode(text)]])
        assert nats == pytest.approx(float(judge.network(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1), rel=off)
    assert scores.tokens.tolist() == scores.bytes.tolist() == [1, 7]


def test_text_beyond_the_context_is_scored_in_windows(folder: Path) -> None:
    """The context is 8: BOS and 7 tokens, then BOS and the other 3."""
    judge = loaded(folder)
    whole, first, rest = (float(judge.score(rows_of([text, "a"]), Bytes()).nats[0]) for text in
                          (TEXTS[0], TEXTS[0][:7], TEXTS[0][7:]))  # fmt: skip
    assert whole == pytest.approx(first + rest, rel=1e-9)


def test_special_tokens_in_a_text_are_text(folder: Path) -> None:
    judge = loaded(folder)
    assert judge.begin not in judge.encode("a<|endoftext|>")


def test_scores_do_not_depend_on_who_is_scored_beside(folder: Path) -> None:
    for judge in (loaded(folder), redraft_judge()):
        together = judge.score(rows_of(TEXTS), Bytes()).nats
        alone = [judge.score(rows_of(TEXTS)[i : i + 1], Bytes()).nats[0] for i in range(len(TEXTS))]
        assert together.tolist() == pytest.approx([float(nats) for nats in alone], rel=1e-9)


def test_a_redraft_judge_scores_its_own_ids_as_they_are_and_others_as_text() -> None:
    """By ids the ends of document are paid for; as text they are nothing."""
    judge = redraft_judge()
    rows = rows_of(TEXTS)

    own, other = judge.score(rows, Bytes()), judge.score(rows, Foreign())
    assert own.tokens.tolist() == [10, 10, 10] and other.tokens.tolist() == own.bytes.tolist() == [10, 1, 7]
    assert other.nats[0] == pytest.approx(float(own.nats[0]), rel=1e-9) and other.nats[1] < own.nats[1]
    expected = [judge.model.score(text)[0].nats for text in TEXTS]
    assert other.nats.tolist() == pytest.approx(expected, rel=1e-9)


def test_features_are_the_state_after_the_text(folder: Path) -> None:
    for judge in (loaded(folder), redraft_judge()):
        features = judge.features(rows_of(TEXTS[:1] * 2), Bytes())
        assert features.shape == (2, 16) and torch.allclose(features[0], features[1])


def test_windows_are_added_up_by_owner() -> None:
    """Nats are the ids themselves: sums by row, whatever the window."""
    rows = [[1, 2, 3, 4, 5], [], [7], [1] * 9]
    for size in (1, 2, 4, 100):
        summed = by_windows(rows, size, lambda ids, paid: (ids * paid).sum(1).double(), torch.device("cpu"))
        assert summed.tolist() == [15, 0, 7, 9]


def test_ratio_error_is_that_of_the_mean_where_the_texts_are_equally_long() -> None:
    nats = torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    value, error = ratio(nats, torch.full((4,), 2))
    assert value == pytest.approx(1.25) and error == pytest.approx(float(nats.std()) / 2 / math.sqrt(4))
    with pytest.raises(UserError, match="no text"):
        ratio(nats, torch.zeros(4))


def test_every_judge_says_which_weights_it_has(folder: Path) -> None:
    import hashlib

    judge = load_evaluator(folder, source=True).identity
    assert judge.kind == "transformers" and judge.source and judge.dtype == "float32"
    assert judge.weights == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none/at/all", None, "no such judge: .*none/at/all"),
        ("x.gguf", b"not one", "cannot load the judge .*x.gguf|needs a package"),
        ("x.txt", b"text", "x.txt is no judge: a judge is"),
        ("x.bin", b"\0" * 40, "holds no tok"),
    ],
)
def test_what_is_no_judge_is_one_clear_line(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_evaluator(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_damaged_llama2c_file_and_a_foreign_folder_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "tok.bin").write_bytes(b"")
    (tmp_path / "x.bin").write_bytes(b"\1\0\0\0" * 9)
    with pytest.raises(UserError, match=r"cannot load the judge .*x\.bin: not a"):
        load_evaluator(tmp_path / "x.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(UserError, match="cannot load the judge"):
        load_evaluator(tmp_path)


def test_a_bound_is_no_judge() -> None:
    with pytest.raises(UserError, match="exact likelihood"):
        RedraftEvaluator.of(Model(build("mdlm", {}, 257), small_network(257), load_tokenizer("bytes"), 8, {}))


@pytest.mark.skipif(not STORIES.is_file(), reason="shared/data/stories260k is not here")
def test_llama2c_reads_the_stories_model() -> None:
    """Its own kind of story costs it below one nat a token (read wrongly, near ln 512 = 6.2), shuffled words over four."""
    judge = load_evaluator(STORIES, source=True)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    scores = judge.score(rows_of([story, "park the in Lily a to She upon girl play named was little"]), Bytes())
    told, shuffled = (scores.nats / scores.tokens).tolist()
    assert told < 1 and shuffled > 4
    assert judge.identity.weights.startswith("b0a507e7ad0f6266") and judge.identity.source
