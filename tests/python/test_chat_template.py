# SPDX-License-Identifier: Apache-2.0
"""Chat templates render as transformers renders them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import modicum as mo
import pytest
import transformers
from tiny import write_tiny_model

MESSAGES = [
    {"role": "system", "content": "Be <brief> & “kind”."},
    {"role": "user", "content": "Hello\n"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why?"},
]


def test_qwens_template_renders_as_in_transformers(data: Path, tmp_path: Path):
    folder = data / "tokenizers" / "qwen2.5"
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = mo.ChatTemplate.load(folder)
    assert ours is not None
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        for generation in (True, False):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            assert ours.render(messages, add_generation_prompt=generation) == expected
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
    expected = theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False, add_generation_prompt=True)
    assert ours.render(MESSAGES, tools=tools) == expected


def test_the_demo_template_renders_as_in_transformers(demo: Path):
    theirs = transformers.AutoTokenizer.from_pretrained(demo / "model")
    model = mo.load(demo / "model")
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert model.chat_prompt(MESSAGES) == expected


def test_a_template_file_comes_before_the_one_in_the_config(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    template = mo.ChatTemplate.load(folder)
    assert template is not None
    assert template.render([{"role": "user", "content": "a"}]) == "a!"
    shutil.rmtree(folder)


def test_broken_and_refusing_templates_are_modicum_errors(tmp_path: Path):
    with pytest.raises(mo.FormatError, match="Jinja2"):
        mo.ChatTemplate("{% if %}")
    with pytest.raises(mo.InvalidArgument, match="no tools"):
        mo.ChatTemplate("{{ raise_exception('no tools') }}").render([])
    with pytest.raises(mo.InvalidArgument):
        mo.ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}").render([])
    with pytest.raises(mo.Unsupported, match="place"):
        mo.ChatTemplate("nothing").split("instruction")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(mo.FormatError):
        mo.ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(mo.FormatError):
        mo.ChatTemplate.load(tmp_path)
