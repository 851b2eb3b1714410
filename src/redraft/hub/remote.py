"""Upload to and download from the Hugging Face hub; offline, the local cache is used.

Only data is fetched (JSON, safetensors, tokenizers, the card): nothing that could run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redraft.errors import UserError, require

DATA = ("*.json", "*.safetensors", "*.model", "README.md")
# What is a model's, and not a run's: its journal and configuration name folders of the machine it ran on.
MODEL = (
    "config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "bytes.json", "README.md",
    "*_redraft.py", "*.gguf",
)  # fmt: skip
FOLDERS = ("runs", "studies", "models", "checkpoints")  # what people call folders of theirs, and no owner on the hub
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(spec: str) -> bool:
    """`owner/name`, and nothing of that name is here: where there is a folder `owner`, or could be one, a path was meant."""
    if _NAME.fullmatch(spec) is None:
        return False
    path = Path(spec)
    return not (path.exists() or path.parent.is_dir() or path.parent.name in FOLDERS)


def fetch(name: str) -> Path:
    """The folder of `owner/name` in the local cache, brought up to date where there is a network."""
    with _hub(f"fetch {name}") as hub:
        return Path(hub.snapshot_download(name, allow_patterns=list(DATA)))


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload the model in a folder as `owner/name`, made if it is new. Returns its address."""
    if not (folder / "config.json").is_file() and not any(folder.glob("*.gguf")):
        raise UserError(f"{folder} holds no finished model: give a run folder, or one that `redraft export` wrote")
    if _NAME.fullmatch(name) is None:
        raise UserError(f"{name!r} is no name on the hub: give owner/name")
    with _hub(f"push to {name}") as hub:
        url = hub.create_repo(name, private=private, exist_ok=True)
        files = [hub.CommitOperationAdd(file, content) for file, content in _contents(folder, name).items()]
        hub.create_commit(name, files, commit_message="A redraft model")
    return str(url)


def _contents(folder: Path, name: str) -> dict[str, Path | bytes]:
    """What is uploaded, by name; the card's example loads the model from where it will be."""
    files = sorted(path for path in folder.iterdir() if any(path.match(pattern) for pattern in MODEL))
    out: dict[str, Path | bytes] = {path.name: path for path in files}
    if "README.md" in out:
        out["README.md"] = (folder / "README.md").read_text("utf-8").replace('(".', f'("{name}').encode()
    return out


@contextmanager
def _hub(what: str) -> Iterator[Any]:
    """The library; what it or its HTTP client raises becomes one line."""
    require(f"cannot {what}: it", "hf", "huggingface_hub")
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    where = constants.ENDPOINT
    try:
        yield hub
    except RepositoryNotFoundError:
        raise UserError(f"cannot {what}: {where} has no such model, or HF_TOKEN may not see it") from None
    except OfflineModeIsEnabled:
        raise UserError(f"cannot {what}: HF_HUB_OFFLINE is set; unset it to reach {where}") from None
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{where} cannot be reached"
        raise UserError(f"cannot {what}: {why}, and the local cache does not hold it") from None
    except Exception as error:  # its HTTP client has changed from version to version, and so have the exceptions
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"cannot {what} at {where}: {type(error).__name__}: {detail}") from None
