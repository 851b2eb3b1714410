"""The `redraft` command. A command's module is imported when it is called, so `--help`, `list` and `plan` load no torch."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import redraft
from redraft.commands import Part
from redraft.errors import ASKED, MISTAKE, UserError, unknown

COMMANDS = {
    "demo": "a miniature study from start to report: AR, MDLM, Duo, Eso-LM at equal FLOPs, in about five minutes",
    "plan": "sizes, tokens, FLOPs, steps, memory and time of a run or a study, before anything is spent",
    "train": "train one model, score it, leave a folder with weights and a record",
    "sample": "write text with a trained model",
    "serve": "models over HTTP for OpenAI's clients: completions, chat, scores, streams; a page that shows them write",
    "race": "latency, tokens/s and quality at one entropy of several models side by side",
    "eval": "the likelihood (or its bound) of held-out text, or scores on tasks, with their errors",
    "compare": "two results side by side: what differs, and what may not be compared, with the reason",
    "answer": "answer MT-bench's questions in FastChat's format; a judge by URL",
    "study": "run, inspect, fit and report many runs: study run|status|fit|frontier|report",
    "task": "tasks for every family: task reversal|gsm8k|shift|speed|arithmetic|graphs|sudoku|lists|wordproblems",
    "convert": "make a model folder of a checkpoint of other code (MDLM, Duo, Eso-LM, SMDM, GIDD, LLaDA)",
    "export": "a model for other programs: transformers, a stock Llama, GGUF, or our own folder with a card",
    "push": "upload a model to the hub",
    "list": "families, samplers, sizes, recipes",
    "doctor": "what this machine can do, and what is missing",
}
# Short flags for the keys of a run that one reaches for most.
SHORT = {
    "family": "family", "size": "network.size", "block": "network.block", "data": "data.source",
    "tokenizer": "data.tokenizer", "length": "data.length", "flops": "budget.flops", "tokens": "budget.tokens",
    "steps": "budget.steps", "convention": "budget.convention", "lr": "train.lr", "batch": "train.batch",
    "device": "train.device", "precision": "train.precision", "seed": "seed",
}  # fmt: skip

# How long threads of torch wait for each other in a loop before they sleep; read when torch is loaded. By its default, some
# milliseconds, a small network on two busy cores wrote a hundred times slower than it does with this.
SPINS = "1000"

PARTS = ("network", "budget", "evaluate", "train")  # of a run: `--train.lr`


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are `UserError`s: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace(": must be", " must be")
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 2 the user can mend it (one line says how), 130 interrupted."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"redraft: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except PermissionError as error:
        print(f"redraft: cannot read or write {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        print("redraft: interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(ASKED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return print(usage())
    if arguments[0] == "--version":
        return print(redraft.__version__)
    name, *rest = arguments
    command, parser = command_of(name)
    if rest and rest[0] in getattr(command, "PARTS", {}) and {"-h", "--help"} & set(rest):
        return narrow(parser, rest[0], command.PARTS[rest[0]]).print_help()
    command.run(*parsed(name, rest))
    return None


def command_of(name: str) -> tuple[Any, Parser]:
    """The module of a command, and its parser."""
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = importlib.import_module(f"redraft.commands.{name}")
    parser = Parser(
        prog=f"redraft {name}", description=command.__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.arguments(parser)
    return command, parser


def parsed(name: str, rest: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What a command's own arguments say, and the keys of a run that the others set. `UserError` for what it does not take."""
    command, parser = command_of(name)
    own, others = split_flags(rest, parser._option_string_actions)
    if others and not getattr(command, "OVERRIDES", False):
        raise unknown(f"flag of `redraft {name}`:", others[0].partition("=")[0], parser._option_string_actions)
    _known(name, others, list(parser._option_string_actions))
    return parser.parse_args(own), overrides(others)


def narrow(parser: Parser, part: str, of: Part) -> Parser:
    """The parser's help cut down to one part of its command."""
    parser.prog, parser.description = f"{parser.prog} {part}", of.text
    for action in parser._actions:
        if action.dest in of.renamed:
            action.metavar = of.renamed[action.dest]
        elif action.dest not in ("help", *of.takes):
            action.help = argparse.SUPPRESS
        elif action.help is not None:
            action.help = of.says.get(action.dest, action.help.removesuffix(f" ({part})").removeprefix(f"{part}: "))
    return parser


def _known(command: str, others: list[str], flags: list[str]) -> None:
    """`UserError` for a flag without a dot that is neither the command's nor names a key of a run."""
    keys = ["--sampler"] if command == "sample" else [f"--{key}" for key in (*SHORT, *PARTS)]
    if command not in ("plan", "train", "sample"):
        return
    for word in others:
        flag = word.partition("=")[0]
        if word.startswith("--") and "." not in flag and flag not in keys:
            raise unknown(f"flag of `redraft {command}`:", flag, [*flags, *keys])


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: redraft COMMAND [...]   (redraft COMMAND --help says more)", "", *lines, ""]
        + ["Every command takes --json. Losses are nats per token, budgets FLOPs; t = 0 is text, t = 1 is noise."]
    )


def split_flags(arguments: list[str], known: Mapping[str, argparse.Action]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and the flags (with their values) that set keys of a run."""
    own, others, pending = list[str](), list[str](), list(arguments)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--") or word == "--" or word.partition("=")[0] in known:
            own.append(word)
            if word in known and pending and _is_value(known[word], pending[0], known):
                own[-1] = f"{word}={pending.pop(0)}" if word.startswith("--") else word
            continue
        others.append(word)
        if "=" not in word and pending and not pending[0].startswith("--"):
            others.append(pending.pop(0))
    return own, others


def _is_value(action: argparse.Action, word: str, known: Mapping[str, argparse.Action]) -> bool:
    """Whether a word is the one value of the flag before it, dashes or none: of `--prompt --what?`, but not where the word is
    a flag of the command or names a key of a run."""
    flag = word.partition("=")[0]
    key = flag.startswith("--") and (flag[2:].split(".")[0] in (*SHORT, *PARTS, "sampler"))
    return action.nargs is None and flag not in known and not key


def overrides(arguments: list[str]) -> dict[str, Any]:
    """`--train.lr 3e-4 --family mdlm` -> {"train": {"lr": 3e-4}, "family": "mdlm"}. Values are TOML, else strings."""
    table: dict[str, Any] = {}
    pending = list(arguments)
    while pending:
        flag = pending.pop(0)
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {flag!r}: settings are given as --key value or --part.key value")
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not pending or pending[0].startswith("--"):
                raise UserError(f"--{key} needs a value")
            value = pending.pop(0)
        _put(table, SHORT.get(key, key).replace("-", "_").split("."), _value(value))
    return table


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(table: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = table.get(part)
        # `--family mdlm --family.objective nelbo`: a plain name grows into a table.
        below = {"name": below} if isinstance(below, str) else below
        if below is not None and not isinstance(below, dict):
            raise UserError(f"--{'.'.join(path)}: {part} was given as {below!r}, which has no keys of its own")
        table[part] = below = {} if below is None else below
        table = below
    if isinstance(table.get(path[-1]), dict) and isinstance(value, str):
        table[path[-1]]["name"] = value
    else:
        table[path[-1]] = value
