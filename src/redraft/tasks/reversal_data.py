"""Data of the reversal curse: fictitious people and their descriptions (Berglund et al. 2023, arXiv:2309.12288).

Three groups. Of p2d people every training sentence gives the name before the description, of d2p people the description
before the name, of `both` both. A sentence is a prompt and its completion; tests hold paraphrases that training never saw:

    p2d   Indeed Balo Mervin remains | Ostrel's weaver
    d2p   Indeed Ostrel's weaver remains | Balo Mervin

The schema is the original's: `{p2d,d2p,both}_prompts_{train,test}.jsonl`, `{p2d,d2p}_reverse_prompts_test.jsonl`, an object
{"prompt", "completion"} a line. The generator's words are its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.text.sources.formats import read_records

GROUPS = ("p2d", "d2p", "both")
OPENERS = ("Indeed", "Truly", "Reportedly", "Famously")
VERBS = ("is", "was", "became", "remains")
TRADES = (
    "actor", "baker", "botanist", "cellist", "chemist", "dancer", "diver", "engraver", "farmer", "geologist",
    "jeweller", "juggler", "mason", "miller", "painter", "pilot", "poet", "potter", "sailor", "weaver",
)  # fmt: skip
PLACES = (
    "Ostrel", "Bramor", "Cantar", "Dolven", "Elmar", "Farun", "Galor", "Hestor", "Istrin", "Jorvan",
    "Keldar", "Lumer", "Morav", "Nerath", "Orsin", "Pelag", "Quorin", "Ruvel", "Selmar", "Tarquin",
)  # fmt: skip
FIRST = tuple(
    a + b for a, b in product(("Ba", "Do", "Fe", "Ka", "Li", "Mo", "Ru", "Ze"), ("lo", "rin", "ta", "vi", "mar"))
)
LAST = tuple(
    a + b
    for a, b in product(
        ("Mer", "Har", "Cald", "Thorn", "Bel", "Ash", "Win", "Gar"), ("vin", "low", "wick", "ford", "ston")
    )
)


@dataclass(frozen=True)
class Sentence:
    """`prompt` and `completion`, as in the original files: the completion begins with a space."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Question:
    """A text with a hole: `before` and `after` are given, `answer` should come between. `person` groups paraphrases."""

    before: str
    answer: str
    after: str
    person: int


@dataclass(frozen=True)
class People:
    """`told`: the training sentences of each group. `tests`: questions by (group, kind).

    forward    the trained order, in a paraphrase of its own
    reversed   the other order, in a paraphrase of its own
    infill     a training sentence whose *first* part is hidden: what the reversed question asks for, where training had
               it. Of p2d people the name before its description, of d2p people the description before the name.
    """

    told: dict[str, tuple[Sentence, ...]]
    tests: dict[tuple[str, str], tuple[Question, ...]]

    @property
    def train(self) -> tuple[Sentence, ...]:
        return tuple(sentence for sentences in self.told.values() for sentence in sentences)

    def texts(self) -> list[str]:
        """Every sentence, those of the tests too."""
        asked = (q.before + q.answer + q.after for questions in self.tests.values() for q in questions)
        return [*(sentence.text for sentence in self.train), *asked]


def generate(seed: int, people: int = 20) -> People:
    """`people` of each group, all names and descriptions different; a pure function of its arguments.

    A paraphrase is an opener and a verb: 12 of the 16 pairs are trained on, the other 4, in which every opener and verb
    comes once, are the tests'. `UserError` for more people than there are descriptions.
    """
    if not 1 <= people <= len(PLACES) * len(TRADES) // 3:
        raise UserError(f"people must be in 1..{len(PLACES) * len(TRADES) // 3} a group, got {people}")
    rng = random.Random(f"reversal {seed}")
    names = [f"{first} {last}" for first, last in rng.sample(list(product(FIRST, LAST)), 3 * people)]
    words = rng.sample(list(product(PLACES, TRADES)), 3 * people)
    known = [(name, f"{place}'s {trade}") for name, (place, trade) in zip(names, words)]
    groups = {"p2d": known[:people], "d2p": known[people : 2 * people], "both": known[2 * people :]}
    held_out = list(zip(OPENERS, rng.sample(VERBS, len(VERBS))))
    trained = [pair for pair in product(OPENERS, VERBS) if pair not in held_out]
    told = {
        group: tuple(
            _sentence(pair, *(fact if direction == "p2d" else fact[::-1]))
            for direction in (("p2d", "d2p") if group == "both" else (group,))
            for fact in facts
            for pair in trained
        )
        for group, facts in groups.items()
    }
    tests: dict[tuple[str, str], tuple[Question, ...]] = {}
    for group in ("p2d", "d2p"):
        facts = [fact if group == "p2d" else fact[::-1] for fact in groups[group]]  # in the order of training
        tests[group, "forward"] = _asked(facts, held_out)
        tests[group, "reversed"] = _asked([fact[::-1] for fact in facts], held_out)
        tests[group, "infill"] = _hidden_first(facts, rng.sample(trained, len(held_out)))
    return People(told, tests)


def _sentence(pair: tuple[str, str], first: str, second: str) -> Sentence:
    return Sentence(f"{pair[0]} {first} {pair[1]}", f" {second}")


def _asked(facts: list[tuple[str, str]], pairs: list[tuple[str, str]]) -> tuple[Question, ...]:
    sentences = [(number, _sentence(pair, *fact)) for number, fact in enumerate(facts) for pair in pairs]
    return tuple(Question(s.prompt, s.completion, "", number) for number, s in sentences)


def _hidden_first(facts: list[tuple[str, str]], pairs: list[tuple[str, str]]) -> tuple[Question, ...]:
    return tuple(
        Question(opener, f" {first}", f" {verb} {second}", number)
        for number, (first, second) in enumerate(facts)
        for opener, verb in pairs
    )


def load(folder: Path) -> People:
    """The original files, plain or `.xz`. `UserError` where one is missing or is no such file.

    Their infill: in a training sentence whose prompt holds, word for word, what the reversed tests ask for, that is hidden.
    """
    read = lambda name: _read(_found(folder, f"{name}.jsonl"))
    told = {group: tuple(read(f"{group}_prompts_train")) for group in GROUPS}
    tests: dict[tuple[str, str], tuple[Question, ...]] = {}
    for group in ("p2d", "d2p"):
        forward, backward = read(f"{group}_prompts_test"), read(f"{group}_reverse_prompts_test")
        names = sorted({s.completion.strip() for s in (backward if group == "p2d" else forward)})
        asked = lambda s, names=names: Question(s.prompt, s.completion, "", _person(s.text, names))
        tests[group, "forward"], tests[group, "reversed"] = tuple(map(asked, forward)), tuple(map(asked, backward))
        firsts = sorted({s.completion.strip().rstrip(".") for s in backward}, key=len, reverse=True)
        tests[group, "infill"] = tuple(_found_first(told[group], firsts, names))
    return People(told, tests)


def _person(text: str, names: list[str]) -> int:
    return next(number for number, name in enumerate(names) if name in text)


def _found_first(sentences: tuple[Sentence, ...], firsts: list[str], names: list[str]) -> Iterator[Question]:
    """The sentences whose prompt holds one of `firsts`, with it hidden, and the space before it too."""
    for sentence in sentences:
        first = next((first for first in firsts if first in sentence.prompt), None)
        if first is not None:
            at = sentence.prompt.index(first)
            start, end = at - sentence.prompt[:at].endswith(" "), at + len(first)
            text = sentence.text
            yield Question(text[:start], text[start:end], text[end:], _person(text, names))


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.xz"):
        if path.is_file():
            return path
    raise UserError(f"{folder} holds no {name} (nor {name}.xz): give the folder of the original reversal-curse files")


def _read(path: Path) -> list[Sentence]:
    sentences = []
    for number, row in read_records(path):
        if not (
            isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
        ):
            raise UserError(f"line {number} of {path}: give an object with the texts 'prompt' and 'completion'")
        sentences.append(Sentence(row["prompt"], row["completion"]))
    return sentences


def rows(people: People) -> dict[str, list[dict[str, Any]]]:
    """What each file of the schema holds."""
    plain = lambda s: {"prompt": s.prompt, "completion": s.completion}
    files = {"all_prompts_train": [plain(s) for s in people.train]}
    files |= {f"{group}_prompts_train": [plain(s) for s in sentences] for group, sentences in people.told.items()}
    for group in ("p2d", "d2p"):
        for kind, name in (("forward", "prompts"), ("reversed", "reverse_prompts")):
            asked = people.tests[group, kind]
            files[f"{group}_{name}_test"] = [{"prompt": q.before, "completion": q.answer} for q in asked]
    return files
