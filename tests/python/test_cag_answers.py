# SPDX-License-Identifier: Apache-2.0
"""Asking a knowledge cache: one question or many, in conversation, with sources, and through transformers."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import modicum as mo
import pytest
from files import pdf
from tiny import write_tiny_model

ALIEN = "What is the boiling point of mercury on Neptune?"


@pytest.fixture(scope="module")
def model(demo: Path) -> mo.Model:
    return mo.load(demo / "model", threads=2)


@pytest.fixture(scope="module")
def kb(demo: Path, model: mo.Model, tmp_path_factory: pytest.TempPathFactory) -> mo.cag.Knowledge:
    return mo.cag.build(model, demo / "handbook", tmp_path_factory.mktemp("kb") / "a.kv")


@pytest.fixture(scope="module")
def blocks(demo: Path, model: mo.Model, tmp_path_factory: pytest.TempPathFactory) -> mo.cag.Knowledge:
    path = tmp_path_factory.mktemp("blocks") / "a.kv"
    return mo.cag.build(model, demo / "handbook", path, layout="blocks")


@pytest.fixture(scope="module")
def questions(demo: Path) -> list[dict[str, str]]:
    return json.loads((demo / "questions.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")), threads=1)


def facts(answer: mo.cag.Answer) -> tuple[Any, ...]:
    cited = [(c.document, c.bytes, c.quote, c.heading, c.literal) for c in answer.citations]
    flags = (answer.confidence, answer.abstained, answer.finish_reason, answer.selected)
    return answer.text, answer.ids, answer.log_probabilities, cited, flags


def test_an_answer_of_several_beams_is_the_best_of_the_search_from_the_documents(
    kb: mo.cag.Knowledge, model: mo.Model, questions: list[dict[str, str]]
):
    question = questions[0]["question"]
    pieces: list[str] = []
    answer = kb.ask(question, beams=4, length_penalty=0.5, max_new_tokens=12, stream=pieces.append)
    best = model.beam_search(
        kb.question_ids(question), start=kb.branch(), beams=4, length_penalty=0.5, max_new_tokens=12
    )[0]
    assert answer.ids == best.ids and answer.log_probabilities == best.log_probabilities
    assert answer.text == best.text == "".join(pieces)
    assert answer.text == questions[0]["answer"] and answer.citations
    assert kb.ask_many([question], beams=4, length_penalty=0.5, max_new_tokens=12)[0].ids == answer.ids
    with kb.session() as talk:
        assert talk.ask(question, beams=4, length_penalty=0.5, max_new_tokens=12).ids == answer.ids
        assert talk.ask(questions[1]["question"], beams=3).text
    with pytest.raises(mo.InvalidArgument, match="beams"):
        kb.ask(question, beams=0)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 3}, {"cite": False, "stop": ["0"]}])
def test_asking_many_at_once_gives_what_asking_each_gives(
    options: dict[str, Any], kb: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    asked = [entry["question"] for entry in questions[:5]] + [ALIEN, "Why?"]
    together = kb.ask_many(asked, max_new_tokens=12, **options)
    if "temperature" in options:
        assert [a.ids for a in together] == [a.ids for a in kb.ask_many(asked, max_new_tokens=12, **options)]
        asked = asked[:1]  # others draw from streams of their own
    for question, answer in zip(asked, together, strict=False):
        assert facts(kb.ask(question, max_new_tokens=12, **options)) == facts(answer)
    assert kb.ask_many([]) == []


def test_asking_many_of_a_cache_that_selects_gives_what_asking_each_gives(
    blocks: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    asked = [entry["question"] for entry in questions[:4]]
    together = blocks.ask_many(asked, most_segments=2)
    for question, answer in zip(asked, together, strict=True):
        assert facts(blocks.ask(question, most_segments=2)) == facts(answer)
        assert 1 <= len(answer.selected) <= 2


def test_a_conversation_reads_the_tokens_of_the_templates_own_rendering(
    kb: mo.cag.Knowledge, model: mo.Model, questions: list[dict[str, str]]
):
    documents = "".join(f"[{d.name}]\n{d.text}\n\n" for d in kb.documents)
    messages = [{"role": "system", "content": f"{mo.cag.INSTRUCTION}\n\n{documents}"}]
    session = kb.session()
    assert (len(session), session.turns) == (0, 0)
    assert model.chat_template is not None
    for turn, entry in enumerate(questions[:3]):
        messages.append({"role": "user", "content": entry["question"]})
        ids = model.tokenizer.encode(model.chat_template.render(messages), add_special_tokens=False)
        answer = session.ask(entry["question"])
        assert answer.finish_reason == "stop_token"
        alone = model.generate(ids, max_new_tokens=64)
        assert (answer.ids, answer.log_probabilities) == (alone.ids, alone.log_probabilities)
        assert len(session) == len(ids) + len(answer.ids) - 1  # the stop token is the template's to write
        assert session.turns == turn + 1
        messages.append({"role": "assistant", "content": model.tokenizer.decode(answer.ids[:-1])})
        assert answer.cost.question_tokens < 60


def test_a_reset_conversation_begins_anew_and_costs_no_reading(
    kb: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    first = kb.ask(questions[0]["question"])
    with kb.session() as session:
        assert facts(session.ask(questions[0]["question"])) == facts(first)
        later = session.ask(questions[0]["question"])
        session.reset()
        assert (len(session), session.turns) == (0, 0)
        again = session.ask(questions[0]["question"])
        assert facts(again) == facts(first)
        assert again.cost.cached_tokens == len(kb)
        assert again.cost.computed_tokens == 0
    assert later.ids
    assert session.turns == 0


def test_an_error_leaves_a_conversation_as_it_was(kb: mo.cag.Knowledge, questions: list[dict[str, str]]):
    a, b = kb.session(), kb.session()
    for session in (a, b):
        session.ask(questions[0]["question"])
    with pytest.raises(mo.InvalidArgument, match="question"):
        a.ask("  \n")
    with pytest.raises(mo.ContextOverflow):
        a.ask("why " * 5000)
    with pytest.raises(KeyError):
        a.ask(questions[1]["question"], stream=lambda _: {}["missing"])
    assert (len(a), a.turns) == (len(b), 1)
    assert facts(a.ask(questions[1]["question"])) == facts(b.ask(questions[1]["question"]))


def test_streams_give_the_text_and_end_where_they_are_told(
    kb: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    pieces: list[str] = []
    answer = kb.session().ask(questions[0]["question"], stream=pieces.append)
    assert "".join(pieces).strip() == answer.text.strip()
    assert len(pieces) > 1
    pieces.clear()

    def stop(piece: str) -> bool:
        pieces.append(piece)
        return False

    cut = kb.ask(questions[0]["question"], stream=stop)
    assert len(pieces) == 1
    assert len(cut.ids) < len(answer.ids)


def test_what_the_documents_do_not_hold_is_flagged(kb: mo.cag.Knowledge, questions: list[dict[str, str]]):
    known, alien = kb.ask(questions[0]["question"]), kb.ask(ALIEN)
    assert known.citations and not known.abstained and known.confidence > mo.cag.ABSTAIN_BELOW
    assert alien.abstained and alien.confidence < known.confidence
    assert kb.ask(questions[0]["question"], abstain_below=1.0).abstained
    assert not kb.ask(ALIEN, abstain_below=0.0).abstained
    assert not kb.ask(questions[0]["question"], cite=False).citations


def test_the_threshold_of_the_build_is_kept_in_the_file(
    demo: Path, model: mo.Model, questions: list[dict[str, str]], tmp_path: Path
):
    strict = mo.cag.build(model, demo / "handbook", tmp_path / "a.kv", abstain_below=1.0)
    assert strict.describe()["abstain_below"] == 1.0
    assert mo.cag.open(strict.path, model).ask(questions[0]["question"]).abstained


def test_calibration_tells_answerable_questions_from_others(
    kb: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    labelled: list[tuple[mo.cag.Knowledge, str, str | None]] = [
        (kb, entry["question"], entry["answer"]) for entry in questions
    ]
    with pytest.raises(mo.InvalidArgument, match=r"some without an answer, got \d+ and 0"):
        mo.cag.calibrate(labelled)
    aliens = [ALIEN, "Who won the chess game on Mars?", "How deep is the lake behind the moon?"]
    found = mo.cag.calibrate([*labelled, *((kb, question, None) for question in aliens)])
    assert found.questions == len(questions) + 3
    assert found.exact_match >= 0.8
    assert 0 < found.threshold <= 1
    confidences = [kb.ask(entry["question"]).confidence for entry in questions]
    right = [kb.ask(e["question"]).text.strip() == e["answer"] for e in questions]
    kept = [c >= found.threshold for c, hit in zip(confidences, right, strict=True) if hit]
    assert found.kept == pytest.approx(sum(kept) / len(kept))
    answered = [kb.ask(question).confidence >= found.threshold for question in aliens]
    assert found.recall == pytest.approx(1 - sum(answered) / 3)
    assert found.kept - sum(answered) / 3 > 0.5


def test_citations_are_the_bytes_of_the_files_under_their_headings(
    kb: mo.cag.Knowledge, blocks: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    for cache in (kb, blocks):
        found = 0
        for entry in questions:
            for citation in cache.ask(entry["question"]).citations:
                data = Path(citation.source).read_bytes()
                begin, end = citation.bytes
                assert data[begin:end].decode() == citation.quote
                assert citation.line == data[:begin].count(b"\n") + 1
                above = [x[1:].strip("# ") for x in data[:end].decode().split("\n") if x.startswith("#")]
                assert citation.heading == (above[-1] if above else "")
                assert citation.page is None and not citation.converted
                found += citation.document == entry["source"]
        assert found >= 0.8 * len(questions)


def test_citations_of_converted_files_name_the_page_and_their_converted_text(
    demo: Path, model: mo.Model, questions: list[dict[str, str]], tmp_path: Path
):
    pytest.importorskip("pypdf")
    pytest.importorskip("mammoth")
    folder = tmp_path / "documents"
    folder.mkdir()
    hours = (demo / "handbook" / "hours.md").read_text()
    fees = (demo / "handbook" / "fees.md").read_text()
    (folder / "a.pdf").write_bytes(pdf(["Welcome", "", hours]))
    lines = [line for line in fees.split("\n") if line]
    body = "".join(
        f"<h1>{html.escape(x.strip('# '))}</h1>" if x.startswith("#") else f"<p>{html.escape(x)}</p>"
        for x in lines
    )
    (folder / "b.html").write_text(f"<html><body>{body}</body></html>")
    kb = mo.cag.build(model, folder, tmp_path / "a.kv")
    texts = {d.name: d.text.encode() for d in kb.documents}
    pages = {}
    for entry in questions:
        for citation in kb.ask(entry["question"]).citations:
            begin, end = citation.bytes
            assert citation.converted
            assert texts[citation.document][begin:end].decode() == citation.quote
            pages.setdefault(citation.document, set()).add(citation.page)
    assert pages["a.pdf"] == {3}
    assert pages["b.html"] == {None}


def test_segments_are_selected_by_the_question_and_named(
    blocks: mo.cag.Knowledge, kb: mo.cag.Knowledge, questions: list[dict[str, str]]
):
    for entry in questions:
        answer = blocks.ask(entry["question"], most_segments=1)
        assert len(answer.selected) == 1
        assert answer.cost.cached_tokens < len(blocks)
        assert {c.document for c in answer.citations} <= set(answer.selected) | {
            d.name for d in blocks.documents
        }
    hits = [blocks.ask(e["question"], most_segments=2).selected.count(e["source"]) for e in questions]
    assert sum(hits) >= 0.8 * len(questions)
    assert blocks.ask(questions[0]["question"]).selected == []
    with pytest.raises(mo.InvalidArgument, match="most_segments"):
        kb.ask(questions[0]["question"], most_segments=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_go_to_transformers_and_come_back(
    dtype: str, demo: Path, questions: list[dict[str, str]], tmp_path: Path
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = mo.load(demo / "model", dtype={"float32": "f32", "bfloat16": "bf16"}[dtype])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        demo / "model", dtype=getattr(torch, dtype)
    ).eval()
    kb = mo.cag.build(ours, demo / "handbook", tmp_path / "a.kv")
    read = mo.cag.prompt_ids(ours, demo / "handbook")
    assert read == kb.branch().tokens
    own = transformers.DynamicCache()
    with torch.no_grad():
        theirs(torch.tensor([read]), past_key_values=own)
    adopted = mo.cag.adopt(ours, demo / "handbook", tmp_path / "b.kv", own)
    assert mo.cag.verify(tmp_path / "b.kv", ours, deep=True)["difference"] < 0.02
    assert mo.cag.verify(tmp_path / "a.kv", ours, deep=True)["difference"] == 0
    assert adopted.prompt == kb.prompt
    for kept, given in zip(adopted.dynamic_cache().layers, own.layers, strict=True):
        assert torch.equal(kept.keys, given.keys[:, :, : len(read)])
        assert torch.equal(kept.values, given.values[:, :, : len(read)])
    for entry in questions[:3]:
        ids = read + kb.question_ids(entry["question"])
        for cache in (kb.dynamic_cache(), adopted.dynamic_cache()):
            out = theirs.generate(
                torch.tensor([ids]), past_key_values=cache, max_new_tokens=24, do_sample=False
            )[0, len(ids) :].tolist()
            assert out == kb.ask(entry["question"], max_new_tokens=24).ids
        assert adopted.ask(entry["question"]).text == kb.ask(entry["question"]).text


def test_codes_go_to_transformers_as_numbers_and_blocks_do_not(tiny: mo.Model, tmp_path: Path):
    pytest.importorskip("transformers")
    document = mo.cag.Document("a.md", "a.md", "Year card: 30 euros\n" * 9, (), False, False)
    wide = mo.cag.build(tiny, document, tmp_path / "wide.kv").dynamic_cache()
    apart = []
    for kv in ("int8", "int4"):
        coded = mo.cag.build(tiny, document, tmp_path / f"{kv}.kv", kv=kv).dynamic_cache()
        apart.append(float((coded.layers[1].keys - wide.layers[1].keys).abs().mean()))
    assert 0 < apart[0] < apart[1] < float(wide.layers[1].keys.abs().mean()) / 4
    with pytest.raises(mo.Unsupported, match="blocks"):
        mo.cag.build(tiny, document, tmp_path / "b.kv", layout="blocks").dynamic_cache()


def test_adopting_other_keys_is_refused_or_found_by_the_deep_check(tiny: mo.Model, tmp_path: Path):
    pytest.importorskip("transformers")
    document = mo.cag.Document("a.md", "a.md", "Year card: 30 euros\n" * 3, (), False, False)
    cache = mo.cag.build(tiny, document, tmp_path / "a.kv").dynamic_cache()
    cache.layers[0].keys.neg_()
    mo.cag.adopt(tiny, document, tmp_path / "b.kv", cache)
    with pytest.raises(mo.Corrupt, match="what the model computes"):
        mo.cag.verify(tmp_path / "b.kv", tiny, deep=True)
    cache.crop(-1)
    good = (tmp_path / "b.kv").read_bytes()
    with pytest.raises(mo.InvalidArgument, match="keys and values"):
        mo.cag.adopt(tiny, document, tmp_path / "b.kv", cache)
    assert (tmp_path / "b.kv").read_bytes() == good
