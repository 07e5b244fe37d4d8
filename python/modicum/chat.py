"""Chat templates: the Jinja2 text in tokenizer_config.json that turns messages into a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from modicum._core import FormatError, InvalidArgument, Unsupported

Message = Mapping[str, Any]

# Private-use characters: no template writes them and none trims them away.
_DOCUMENTS = "\ue000documents\ue001"
_QUESTION = "\ue000question\ue001"
_ANSWER = "\ue000answer\ue001"
_NEXT = "\ue000next\ue001"


class ChatTemplate:
    """A chat template, rendered as transformers' ``apply_chat_template`` does.

    Parameters
    ----------
    source : the Jinja2 text.
    special_tokens : what the template calls ``bos_token``, ``eos_token`` and so on.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise FormatError(f"[chat_template] template: expected Jinja2, got an error: {error}") from error

    @classmethod
    def load(cls, directory: str | Path) -> ChatTemplate | None:
        """The template of a Hugging Face directory, or None where it has none.

        Reads ``chat_template.jinja`` first, then ``chat_template`` in ``tokenizer_config.json``.
        """
        directory = Path(directory)
        config_path = directory / "tokenizer_config.json"
        config: dict[str, Any] = {}
        if config_path.exists():
            config = _read_json(config_path)
        jinja_path = directory / "chat_template.jinja"
        source = jinja_path.read_text("utf-8") if jinja_path.exists() else config.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise FormatError(f"[chat_template] {config_path}: chat_template: expected text")
        return cls(source, _special_tokens(config))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The prompt for `messages`, dictionaries with ``role`` and ``content``.

        Raises
        ------
        InvalidArgument
            Where the template refuses the messages, with its words.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
                **extra,
            )
        except jinja2.TemplateError as error:
            raise InvalidArgument(f"[chat_template] messages: refused by the template: {error}") from error

    def split(self, instruction: str) -> tuple[str, str, str]:
        """The text before the documents, between them and the question, and after the question.

        The documents stand in the system message, behind `instruction`. A template without one gets them at
        the head of the user's message. The template is rendered once, so a date that it writes is that of the
        build.
        """
        content = f"{instruction}\n\n{_DOCUMENTS}"
        try:
            text = self.render(
                [{"role": "system", "content": content}, {"role": "user", "content": _QUESTION}]
            )
        except InvalidArgument:
            text = ""
        if not _has_both(text):
            text = self.render([{"role": "user", "content": f"{content}\n{_QUESTION}"}])
        if not _has_both(text):
            raise Unsupported(
                "[chat_template] template: expected a place for documents and for a question, in this order; "
                "pass a format of your own"
            )
        before, rest = text.split(_DOCUMENTS)
        between, after = rest.split(_QUESTION)
        return before, between, after

    def between_turns(self) -> str:
        """The text between an answer and the next question, the end of the answer's turn included.

        Empty where the template gives no such place.
        """
        messages = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        try:
            text = self.render(messages)
        except InvalidArgument:
            return ""
        if text.count(_ANSWER) != 1 or text.count(_NEXT) != 1:
            return ""
        return text.split(_ANSWER)[1].split(_NEXT)[0]


def _has_both(text: str) -> bool:
    return (
        text.count(_DOCUMENTS) == 1
        and text.count(_QUESTION) == 1
        and text.index(_DOCUMENTS) < text.index(_QUESTION)
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[chat_template] {path}: expected JSON, got an error: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"[chat_template] {path}: expected a JSON object")
    return value


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja2's own filter escapes for HTML, which prompts must not be.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
