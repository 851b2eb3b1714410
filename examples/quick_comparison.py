"""Two families on the same text under the same budget, compared as far as they may be.

python examples/quick_comparison.py                        AR and MDLM on Python's standard library, under a minute
python examples/quick_comparison.py ar bd3lm --data books.txt --flops 1e12
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import redraft
from redraft.cli import main as command


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("families", nargs="*", default=["ar", "mdlm"], help="two of `redraft list families`")
    parser.add_argument("--into", type=Path, default=Path("runs/quick-comparison"))
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--size", default="25k")
    parser.add_argument("--flops", default="5e10")
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args(arguments)
    folders = [str(options.into / family) for family in options.families]
    for family, folder in zip(options.families, folders, strict=True):
        what = ["--family", family, "--data", options.data, "--size", options.size, "--length", str(options.length)]
        how = ["--flops", options.flops, "--train.lr", "3e-3", "--batch", "8", "--network.cond", "16"]
        command(["train", "--into", folder, *what, *how])
    command(["compare", *folders])
    for folder in folders:
        model = redraft.load(folder)
        kind = "exact" if model.family.exact else "a bound"
        (score,) = model.score("def main(arguments):\n    return 0\n", draws=8)
        (text,) = model.sample("def ", n=1, length=options.length, steps=16)
        print(f"\n{model.family.name}: {score.nats:.1f} nats ({kind}) for two lines of Python; it writes\n{text}")


if __name__ == "__main__":
    main()
