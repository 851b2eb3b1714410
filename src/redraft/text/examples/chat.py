"""Chat turns as text. A template is one of those below, or a Jinja file as chat models come with: it is given `messages`
(each with `role` and `content`), `add_generation_prompt`, `bos_token` (empty) and `eos_token`.

What the assistant says is found by rendering the turns before it, with the generation prompt, and then the turn itself: the
second text must continue the first. So any template will do that writes turns one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from redraft.errors import UserError, unknown
from redraft.files import read_text

END = "\ue000end of text\ue000"  # what `eos_token` is in rendered text, until it becomes the tokenizer's own id
ROLES = ("system", "user", "assistant")

# Vicuna v1.5's, which SMDM fine-tunes with (arXiv:2410.18514, appendix); ChatML's; and the bare names of the speakers.
TEMPLATES = {
    "vicuna": (
        "{% if messages[0].role != 'system' %}A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}USER: {{ m.content }} "
        "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
        "{{ eos_token if m.role == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}


def template(name: str) -> Any:
    """The compiled template of that name, or in that file. `UserError` for anything else."""
    return compiled(source(name), name)


def source(name: str) -> str:
    """The Jinja text of the template of that name, or in that file. `UserError` for anything else."""
    file = Path(name).expanduser()
    if name not in TEMPLATES and not file.is_file():
        raise unknown("chat template, and no such file:", name, TEMPLATES)
    return TEMPLATES.get(name) or read_text(file)


def turns(row: Any, compiled: Any, where: str) -> Iterator[tuple[str, bool]]:
    """The text of a conversation in parts, and whether each is what the assistant says. It ends with the last such part."""
    messages = _checked(row, where)
    said = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not said:
        raise UserError(f"{where} has no turn of the role 'assistant': there is nothing to learn from it.")
    written = ""
    for number in said:
        before = _rendered(compiled, messages[:number], True, where)
        after = _rendered(compiled, messages[: number + 1], False, where)
        if not (before.startswith(written) and after.startswith(before)):
            raise UserError(f"{where}: the template does not write turn {number + 1} after the turns before it.")
        yield before[len(written) :], False
        yield after[len(before) :], True
        written = after


def asked(row: Any, compiled: Any, where: str) -> str:
    """The text of a conversation up to where the assistant is to speak. `UserError` where the turns are malformed."""
    return _rendered(compiled, _checked(row, where), True, where)


def _checked(row: Any, where: str) -> Sequence[dict[str, str]]:
    if not isinstance(row, Sequence) or isinstance(row, str) or not row:
        raise UserError(f"{where}: 'messages' must be a list of turns, each with 'role' and 'content'.")
    for number, message in enumerate(row, start=1):
        if not (isinstance(message, dict) and {"role", "content"} <= message.keys()):
            raise UserError(f"{where}: turn {number} must be an object with 'role' and 'content'.")
        if message["role"] not in ROLES:
            raise UserError(f"{where}: turn {number} has the role {message['role']!r}: use one of {', '.join(ROLES)}.")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise UserError(f"{where}: turn {number} says nothing: its 'content' must be text.")
        if END in message["content"]:
            raise UserError(f"{where}: turn {number} holds the characters that stand for the end of text.")
    return row


def _rendered(compiled: Any, messages: Sequence[dict[str, str]], prompting: bool, where: str) -> str:
    import jinja2

    try:
        return str(compiled.render(messages=messages, add_generation_prompt=prompting, bos_token="", eos_token=END))
    except jinja2.TemplateError as error:
        raise UserError(f"{where}: the template fails there ({' '.join(str(error).split())}).") from None


@cache
def compiled(text: str, name: str) -> Any:
    """The template with that Jinja text; `name` is for the error where it is none."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"data.template {name} is no Jinja template that can be read: {error}") from None


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
