"""The command line in this process, with a scripted language model and a tiny model; nothing leaves the machine."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import WORDS
from scripted_llm import ScriptedLLM
from test_import import imported_by
from test_improve import arguments as quick_arguments
from test_improve import fill, problem
from test_publishing_hub import server  # noqa: F401 (a fixture)
from typer.testing import CliRunner

import embedtune as et
from embedtune import folder
from embedtune.cli import shell, tuning
from embedtune.cli.app import app
from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.headline import advise
from embedtune.improvement.rounds import Candidate, Check, Round
from embedtune.llms.errors import GenerationStoppedError
from embedtune.llms.protocol import Price

PAGE = Path(__file__).parent.parent / "docs" / "command-line.md"
COMMANDS = ["tune", "evaluate", "search", "improve", "push", "app"]
QUICK = ["--epochs", "1", "--folds", "2", "--max-tokens", "40", "--per-chunk", "2"]


class PaidLLM(ScriptedLLM):
    """Asks about the first and the last words of a chunk."""

    name, price = "scripted-1", Price(2.0, 4.0)

    def __init__(self):
        super().__init__(self.questions)

    def read(self, reply):
        return replace(super().read(reply), input_tokens=100, output_tokens=20)

    @staticmethod
    def questions(text):
        words = text.split()[-8:]
        return f"1. Where is the {' '.join(words[:4])}?\n2. When is the {' '.join(words[4:])}?"


def run(*arguments, **options):
    return CliRunner().invoke(
        app, [str(one) for one in arguments], prog_name="embedtune", env={"COLUMNS": "80"}, **options
    )


def write_documents(path):
    drawn = random.Random(0)
    path.mkdir()
    for number in range(8):
        words = " ".join(drawn.choices(WORDS[9:], k=24))
        (path / f"{number}.txt").write_text(words, encoding="utf-8")
    return path


def everything_in(path):
    return {one.relative_to(path): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


@pytest.fixture
def llm(monkeypatch):
    scripted = PaidLLM()
    monkeypatch.setattr(tuning, "language_model", lambda name: scripted)
    return scripted


@pytest.fixture
def documents(tmp_path):
    return write_documents(tmp_path / "documents")


@pytest.fixture
def order(documents, tiny_model_folder, llm, tmp_path):
    """The arguments of a run on the documents, whose folder is tmp_path / "out"."""
    return ["tune", documents, "--llm", "scripted:1", "--model", tiny_model_folder, *QUICK, "-o", tmp_path / "out"]


@pytest.fixture(scope="module")
def finished(tiny_model_folder, tmp_path_factory):
    """A finished run: its arguments, its folder, its result as JSON, and the language model."""
    place = tmp_path_factory.mktemp("finished")
    out, scripted = place / "out", PaidLLM()
    arguments = ["tune", write_documents(place / "documents"), "--llm", "scripted:1", "--model", tiny_model_folder]
    arguments += [*QUICK, "-o", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "language_model", lambda name: scripted)
        result = run(*arguments, "--budget", 5, "--yes", "--json")
    assert result.exit_code in (shell.DONE, shell.KEEP, shell.CANNOT_TELL), result.stderr
    return [*arguments, "--budget", 5], out, result, scripted


def test_help_reads_like_a_page_of_80_columns():
    for arguments in [["--help"], *([command, "--help"] for command in COMMANDS)]:
        page = run(*arguments)
        assert page.exit_code == 0
        assert max(map(len, page.stdout.splitlines())) <= 80
        assert "Exit codes: 0 done" in page.stdout
        assert "embedtune tune --sample" in page.stdout or "Examples:\n" in page.stdout
    assert run().stdout == run("--help").stdout


def test_no_short_help_of_a_command_is_cut_off():
    assert "..." not in run("--help").stdout.partition("Commands:")[2]


def test_help_imports_none_of_the_libraries_that_take_seconds():
    program = "import sys; sys.argv[1:] = ['--help']\ntry:\n import embedtune.__main__ as m; m.main()\nexcept SystemExit: pass"
    heavy = {"torch", "transformers", "sentence_transformers", "datasets", "numpy", "scipy", "pyarrow", "yaml", "rich"}
    assert (
        imported_by(f"import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n {indented(program)}")
        & heavy
        == set()
    )


def indented(program):
    return program.replace("\n", "\n ")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "embedtune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{et.__version__}\n"


def test_a_dry_run_shows_the_price_and_sends_and_writes_nothing(order, llm, tmp_path):
    before = everything_in(tmp_path)
    quote = run(*order, "--budget", 5, "--dry-run")
    assert quote.exit_code == 0
    assert "8 in 8 chunks" in quote.stdout.replace("\n", " ")
    assert "at most $5.00" in quote.stdout
    assert max(len(line) for line in quote.stdout.splitlines() if "/" not in line) <= 80
    facts = json.loads(run(*order, "--budget", 5, "--dry-run", "--json").stdout)
    estimate = et.estimate_cost(
        et.chunk_documents(et.read_documents(order[1]), max_tokens=40, tokenizer=et.load_model(order[5])),
        llm,
        per_chunk=2,
    )
    assert (facts["usd"], facts["num_requests"], facts["budget_usd"]) == (estimate.live_usd, 8, 5)
    assert llm.requests == []
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_sent_and_nothing_is_left(order, llm, tmp_path, answer):
    refused = run(*order, input=answer)
    assert refused.exit_code == shell.FAILED
    assert "Price      about $" in refused.stderr
    assert "Nothing was sent, and nothing written." in refused.stderr
    assert refused.stdout == ""
    assert llm.requests == []
    assert not (tmp_path / "out").exists()


def test_a_budget_that_does_not_suffice_is_said_before_the_question(order):
    assert "the budget is enough for about" in run(*order, "--budget", 0.001, input="n\n").stderr
    assert "the budget is enough" not in run(*order, "--budget", 5, input="n\n").stderr


def test_a_run_ends_with_the_headline_and_its_exit_code_and_the_places(finished):
    _arguments, out, result, _ = finished
    facts = json.loads(result.stdout)
    assert result.exit_code == shell.exit_code(facts["headline"])
    assert Path(facts["report"]).read_text(encoding="utf-8").startswith("<!")
    assert facts["num_questions"] == len(RetrievalDataset.load_from_disk(out / "data").queries)
    assert "Questions  up to 16, written by scripted:1" in result.stderr
    assert facts["compared_with"][1]["name"] == "BM25"


def test_the_same_command_again_sends_nothing_asks_nothing_and_says_the_same(finished, monkeypatch):
    arguments, out, result, scripted = finished
    monkeypatch.setattr(tuning, "language_model", lambda name: scripted)
    num_sent = len(scripted.requests)
    again = run(*arguments, input="")
    assert again.exit_code == result.exit_code
    assert len(scripted.requests) == num_sent == 8
    assert "which are there already: nothing is sent or paid" in again.stderr.replace("\n           ", " ")
    assert again.stdout.splitlines()[0].lower().startswith(json.loads(result.stdout)["headline"])
    assert again.stdout.rstrip().endswith(f"Report    {out / 'report.html'}")
    assert max(len(line) for line in again.stdout.splitlines() if str(out) not in line) <= 80


@pytest.mark.parametrize(("option", "value"), [("--seed", 7), ("--epochs", 2), ("--per-chunk", 3), ("--budget", 9)])
def test_a_folder_with_another_run_is_refused_and_what_was_paid_for_is_not_to_be_deleted(
    finished, monkeypatch, option, value
):
    arguments, out, _, scripted = finished
    monkeypatch.setattr(tuning, "language_model", lambda name: scripted)
    before = everything_in(out)
    refused = run(*arguments, option, value)
    assert refused.exit_code == shell.FAILED
    assert f"holds a run with other {option.strip('-')}." in refused.stderr
    assert f"everything in it but {out / 'questions'}" in refused.stderr
    assert everything_in(out) == before


def test_where_folds_judge_no_question_that_is_trained_on_is_called_a_test(finished):
    _, out, _, _ = finished
    data = RetrievalDataset.load_from_disk(out / "data")
    assert data.splits == ["train"]
    assert sorted(folder.trained_on(out)) == sorted(data.query_texts.values())
    assert folder.trained_on(out / "retriever") == folder.trained_on(out)


def test_the_verdict_that_was_saved_is_the_one_that_was_printed(finished, monkeypatch):
    _arguments, out, result, _ = finished
    saved = folder.load_verdict(out)
    printed = json.loads(result.stdout)
    facts = json.loads(json.dumps(folder.verdict_facts(saved)))
    assert facts == {name: printed[name] for name in facts}
    assert saved.forgetting.sentence
    assert saved.seconds > 0
    assert saved.cost_usd == pytest.approx(8 * (100 * 2 + 20 * 4) / 1e6)


def test_search_shows_what_vectors_and_words_contribute(finished):
    _, out, _, _ = finished
    hits = json.loads(run("search", out, "pump valve", "-k", 3, "--json").stdout)
    expected = et.Retriever.load(out / "retriever").search("pump valve", k=3)
    assert [(hit["id"], hit["score"]) for hit in hits] == [(hit.id, hit.score) for hit in expected]
    shown = run("search", out / "retriever", "pump valve", "-k", 3)
    assert shown.exit_code == 0
    assert [line[:2] for line in shown.stdout.splitlines() if not line.startswith(" ")] == ["1.", "2.", "3."]
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_no_document_commands_the_terminal_on_which_results_and_errors_are_printed(capsys):
    shell.show("The pump\x1b[2J\x9b.\n", {}, as_json=False)
    shell.say("a\x1b[2J.md cannot be read.")
    assert tuple(capsys.readouterr()) == ("The pump\\x1b[2J\\x9b.\n\n", "a\\x1b[2J.md cannot be read.\n")


def test_evaluate_says_that_questions_were_trained_on(finished, tiny_model_folder, tmp_path):
    _, out, _, _ = finished
    report = tmp_path / "report.html"
    result = run("evaluate", out / "data", "bm25", out, "--split", "train", "--json", "--report", report)
    assert result.stdout, result.stderr
    facts = json.loads(result.stdout)
    assert "trained on" in facts["reason"] or facts["headline"] == "keep what you have"
    assert result.exit_code in (shell.CANNOT_TELL, shell.KEEP)
    assert report.exists()
    verdict = et.evaluate_all(
        RetrievalDataset.load_from_disk(out / "data"),
        {"a": "bm25", "b": et.Retriever.load(out / "retriever")},
        split="train",
        k=(1, 3, 5),
    )
    assert facts["metrics"] == verdict.after.metrics
    fair = json.loads(run("evaluate", out / "data", "bm25", tiny_model_folder, "--split", "train", "--json").stdout)
    assert "trained on" not in fair["reason"]


@pytest.mark.parametrize(("headline", "code"), [("ship it", 0), ("keep what you have", 3), ("cannot tell yet", 4)])
def test_the_headline_is_the_exit_code_of_evaluate(finished, monkeypatch, headline, code):
    _, out, _, _ = finished
    decided = {"ship it": "better", "keep what you have": "worse", "cannot tell yet": "cannot tell"}[headline]
    advice = advise(before=decided, bm25=None, knowledge=None)
    monkeypatch.setattr("embedtune.evaluation.verdict.Verdict._advice", advice)
    result = run("evaluate", out / "data", "bm25", out, "--split", "train")
    assert result.exit_code == code
    assert result.stdout.lower().startswith(headline)


def test_push_shows_what_it_would_upload_with_the_evidence_and_no_texts(finished):
    _, out, result, _ = finished
    shown = run("push", out, "my-org/handbook", "--dry-run", "--json")
    assert shown.exit_code == 0, shown.stderr
    content = json.loads(shown.stdout)
    assert content["private"] is True
    assert content["revision"] is None
    assert "model.safetensors" in content["files"]
    assert "BM25" in content["card"]
    assert shown.stderr.lower().startswith(json.loads(result.stdout)["headline"])


def test_push_for_everyone_asks_first(finished, monkeypatch):
    _, out, _, _ = finished
    monkeypatch.setattr("embedtune.push_to_hub", lambda *_, **__: pytest.fail("uploaded"))
    assert run("push", out, "my-org/handbook", "--public", input="n\n").exit_code == shell.FAILED


@pytest.mark.parametrize("torn", [b"", b'{"model": ', b"[1]", b"{}"])
def test_a_damaged_record_of_a_run_is_named(finished, tmp_path, torn):
    _, out, _, _ = finished
    out = shutil.copytree(out, tmp_path / "out")
    for place, command in (
        (out / "evidence" / "verdict.json", ("push", out, "my-org/handbook", "--dry-run")),
        (out / "command.json", ("evaluate", out / "data", "bm25", out, "--split", "train")),
    ):
        whole = place.read_bytes()
        place.write_bytes(torn)
        refused = run(*command)
        assert refused.exit_code == shell.FAILED
        assert f"{place.name} is damaged or incomplete" in refused.stderr.replace("\n", " ")
        place.write_bytes(whole)


def test_push_of_a_run_that_is_not_finished_says_what_to_do(tmp_path):
    (tmp_path / "out").mkdir()
    refused = run("push", tmp_path / "out", "my-org/handbook")
    assert refused.exit_code == shell.FAILED
    assert "Run the same `embedtune tune` again" in refused.stderr


@pytest.mark.parametrize(("status", "code"), [("accepted", shell.DONE), ("rejected", shell.KEEP)])
def test_improve_serves_what_passes_and_says_by_its_exit_code_if_it_did(finished, monkeypatch, tmp_path, status, code):
    _, out, _, _ = finished
    out = shutil.copytree(out, tmp_path / "out")
    log = et.FeedbackLog(tmp_path / "feedback.sqlite")
    log.close()
    seen, moved = {}, []

    def improve(retriever, data, **options):
        seen.update(options, retriever=retriever, data=data)
        checks = (Check("locked test", status == "accepted", "as good"),)
        return Round(out / "rounds" / "0001", 1, 0, status, "f", "t", "now", (Candidate("tuned", checks),))

    monkeypatch.setattr("embedtune.improve", improve)
    monkeypatch.setattr("embedtune.reindex", lambda retriever, model, *, path: moved.append((model, path)))
    result = run("improve", out, "--feedback", tmp_path / "feedback.sqlite", "--epochs", 2, "--seed", 3, "--json")
    assert result.exit_code == code, result.stderr
    assert json.loads(result.stdout)["status"] == status
    assert seen["output_dir"] == out / "rounds"
    assert (seen["seed"], seen["args"].seed, seen["args"].num_train_epochs) == (3, 3, 2)
    assert len(seen["data"].corpus) == 8
    assert moved == ([(out / "rounds" / "0001" / "model", out / "retriever")] if status == "accepted" else [])


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub, for httpx
def test_push_uploads_the_retriever_with_its_evidence_to_a_private_repository_and_no_texts(finished, server):  # noqa: F811
    _, out, result, _ = finished
    pushed = run("push", out, "my-org/handbook", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    content = json.loads(pushed.stdout)
    repo = "models/my-org/handbook"
    assert content["revision"] == server.heads[repo]
    assert server.private == {repo: True}
    files = server.files[repo]
    assert set(content["files"]) <= set(files)
    assert {"model.safetensors", "retriever.json", "README.md"} <= set(files)
    assert files["README.md"].decode() == content["card"]
    assert json.loads(result.stdout)["headline"] in content["card"].lower()
    data = RetrievalDataset.load_from_disk(out / "data")
    everything = b" ".join(files.values()).decode("utf-8", "replace")
    assert not [text for text in [*data.corpus_texts.values(), *data.query_texts.values()] if text in everything]


@pytest.fixture
def asked_for_more(tiny_model, tmp_path, monkeypatch):
    """A folder whose retriever misses what people call by other names, with the log of it.

    In this world no search can tell which labels are right, and a model of random weights knows nothing to forget.
    """
    monkeypatch.setattr("embedtune.improve", partial(et.improve, k=3, max_wrong=1.0))
    passed = Check("general knowledge", True, "not looked at")
    monkeypatch.setattr("embedtune.improvement.gate.forgetting_check", lambda *_: passed)
    data = problem()
    et.Retriever.from_dataset(tiny_model, data, word_weight=0.0).save(tmp_path / "out" / "retriever")
    data.save_to_disk(tmp_path / "out" / "data")
    log = et.FeedbackLog(tmp_path / "log.sqlite")
    fill(log)
    log.close()
    return tmp_path / "out"


def test_a_round_that_does_not_pass_changes_nothing_that_serves(asked_for_more, tmp_path):
    before = everything_in(asked_for_more / "retriever")
    result = run("improve", asked_for_more, "--feedback", tmp_path / "log.sqlite", "--epochs", 1)
    assert result.exit_code == shell.KEEP, result.stderr
    assert result.stdout.startswith("Keep what you have: the new retriever did not pass: ")
    assert everything_in(asked_for_more / "retriever") == before
    assert [one.status for one in et.Rounds(asked_for_more / "rounds").all()] == ["start", "rejected"]


def test_improve_goes_on_where_it_was_stopped_before_the_first_model_served(asked_for_more, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    command = ["improve", asked_for_more, "--feedback", tmp_path / "log.sqlite", "--epochs", 1]
    with monkeypatch.context() as patch:
        patch.setattr(et.Rounds, "switch_to", stopped)
        assert run(*command).exit_code not in (shell.DONE, shell.KEEP)
    assert [one.status for one in et.Rounds(asked_for_more / "rounds").all()] == ["start"]
    result = run(*command)
    assert result.exit_code == shell.KEEP, result.stderr
    assert et.Rounds(asked_for_more / "rounds").current.status == "start"


def test_the_log_is_that_of_the_folder_unless_another_is_named(asked_for_more, tmp_path, monkeypatch):
    missing = run("improve", asked_for_more)
    assert missing.exit_code == shell.FAILED
    assert f"no feedback log in {asked_for_more / folder.LOG}. Name it with --feedback" in missing.stderr
    assert not (asked_for_more / folder.LOG).exists()
    shutil.copy(tmp_path / "log.sqlite", asked_for_more / folder.LOG)
    assert run("improve", asked_for_more, "--epochs", 1).exit_code == shell.KEEP
    missing = run("improve", asked_for_more, "--data", asked_for_more / "retriever")
    assert "Error: " in missing.stderr


def test_a_round_that_passes_serves_and_the_next_one_goes_on_from_it(asked_for_more, tmp_path, monkeypatch):
    args = quick_arguments()
    monkeypatch.setattr("embedtune.TuningArguments", lambda *_, **__: args)
    command = ["improve", asked_for_more, "--feedback", tmp_path / "log.sqlite", "--epochs", 8]
    result = run(*command)
    assert result.exit_code == shell.DONE, result.stdout + result.stderr
    assert result.stdout.startswith("Ship it: ")
    accepted = et.Rounds(asked_for_more / "rounds").current
    assert accepted.number == 1
    assert et.Retriever.load(asked_for_more / "retriever").learned.model_fingerprint == accepted.model_fingerprint
    again = run(*command, "--json")
    assert again.exit_code in (shell.DONE, shell.KEEP), again.stderr
    assert json.loads(again.stdout)["round"] == 2  # and nothing of the trainer's log beside it
    assert et.Rounds(asked_for_more / "rounds").all()[-1].parent == 1


def test_a_file_of_options_is_the_same_as_options(order, tmp_path):
    given = {"documents": [str(order[1])], "llm": "scripted:1", "model": str(order[5]), "epochs": 1, "folds": 2}
    given |= {"max-tokens": 40, "per_chunk": 2, "output": str(tmp_path / "out"), "dry-run": True, "json": True}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    by_file = run("tune", "--config", tmp_path / "options.yaml")
    by_options = run(*order, "--dry-run", "--json")
    assert by_file.exit_code == 0, by_file.stderr
    assert by_file.stdout == by_options.stdout
    overridden = json.loads(run("tune", "--config", tmp_path / "options.yaml", "--per-chunk", 3).stdout)
    assert overridden["num_questions"] == 24


def test_every_option_can_be_in_a_file(monkeypatch, tmp_path):
    given = {
        "documents": [str(tmp_path)],
        "sample": True,
        "data": str(tmp_path),
        "model": "m",
        "llm": "local:x",
        "budget": 2,
    }
    given |= {"per-chunk": 2, "max-tokens": 9, "language": "German", "batch": True, "folds": 3, "test-split": "test"}
    given |= {"epochs": 0.5, "seed": 4, "output": "here"}
    seen = []
    monkeypatch.setattr(tuning, "check", seen.append)
    monkeypatch.setattr(
        tuning, "read", lambda order: pytest.exit("read") if not seen else (_ for _ in ()).throw(ValueError)
    )
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    run("tune", "--config", tmp_path / "options.yaml")
    expected = {name.replace("-", "_"): value for name, value in given.items()}
    expected |= {"documents": (tmp_path,), "data": tmp_path, "output": Path("here")}
    assert vars(seen[0]) == expected


@pytest.mark.parametrize("content", ["epoch: 3", "- epochs", "epochs: [", "config: other.yaml", "epochs: many"])
def test_a_file_of_options_that_cannot_be_meant_is_wrong_usage(tmp_path, content):
    (tmp_path / "options.yaml").write_text(content, encoding="utf-8")
    refused = run("tune", "--sample", "--config", tmp_path / "options.yaml", "--dry-run")
    assert refused.exit_code == 2
    assert "Error: " in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["tune"], "--sample"),
        (["tune", "--sample", "--llm", "anthropic:m"], "are for documents"),
        (["tune", "--sample", "--data", "."], "one of them"),
        (["tune", "."], "--llm anthropic:claude-haiku-4-5"),
        (["tune", ".", "--llm", "claude"], "anthropic, openai, local"),
        (["tune", ".", "--llm", "mistral:large"], "anthropic, openai, local"),
        (["tune", "nowhere", "--llm", "local:m"], "nowhere"),
        (["tune", "--sample", "--folds", "1"], "greater than or equal to 2"),
        (["search", "nowhere", "Who?"], "nowhere"),
        (["evaluate", ".", "bm25", "bm25"], "named twice"),
        (["tuen"], "tune"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2_and_names_the_remedy(arguments, hint):
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert hint in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize("error", [ValueError, OSError, GenerationStoppedError])
def test_an_error_is_one_line_unless_debug_is_asked_for(order, monkeypatch, error):
    def fail(order):
        raise error("it went\n  wrong")

    monkeypatch.setattr(tuning, "read", fail)
    failed = run(*order)
    assert failed.exit_code == shell.FAILED
    assert failed.stderr == "Error: it went wrong\n"
    assert isinstance(run(*order, "--debug").exception, error)


def test_a_mistake_of_the_program_is_not_hidden(order, monkeypatch):
    monkeypatch.setattr(tuning, "read", lambda order: {}["key"])
    assert isinstance(run(*order).exception, KeyError)


def test_after_ctrl_c_the_message_says_how_to_go_on_and_the_same_command_does(order, llm, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embedtune.tune", interrupt)
        stopped = run(*order, "--yes")
    assert stopped.exit_code == shell.INTERRUPTED
    assert "Stopped. Run the same command again to go on." in stopped.stderr
    assert stopped.stdout == ""
    num_sent = len(llm.requests)
    seen = {}

    def tuned(model, data, **options):
        seen.update(options, data=data)
        raise ValueError("far enough")

    monkeypatch.setattr("embedtune.tune", tuned)
    assert run(*order, input="").stderr.endswith("Error: far enough\n")
    assert len(llm.requests) == num_sent
    assert seen["data"].query_texts == RetrievalDataset.load_from_disk(tmp_path / "out" / "data").query_texts
    assert (seen["num_folds"], seen["test_split"], seen["args"].num_train_epochs) == (2, None, 1)


def test_questions_that_fail_at_first_do_not_change_a_run_that_has_begun(order, llm, monkeypatch, tmp_path):
    honest = llm.reply
    llm.reply = lambda text: "no questions at all" if len(llm.requests) == 1 else honest(text)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("embedtune.tune", stop)
    run(*order, "--yes")
    before = everything_in(tmp_path / "out" / "data")
    llm.reply = honest
    run(*order)
    assert everything_in(tmp_path / "out" / "data") == before


def test_the_sample_needs_no_language_model_and_asks_nothing(tiny_model_folder, monkeypatch, tmp_path):
    small = et.load_sample(num_documents=4)
    monkeypatch.setattr("embedtune.load_sample", lambda: small)
    monkeypatch.setattr(
        tuning, "run", lambda material: (_ for _ in ()).throw(ValueError(str(len(material.data.queries))))
    )
    result = run("tune", "--sample", "--model", tiny_model_folder, "-o", tmp_path / "out", "--max-tokens", 60, input="")
    assert f"Error: {len(small.questions)}\n" in result.stderr
    assert "which are there already" in result.stderr.replace("\n           ", " ")


def test_a_split_that_judges_is_there_and_is_not_counted_as_trained_on(tiny_model_folder, monkeypatch, tmp_path):
    small = et.load_sample(num_documents=6)
    monkeypatch.setattr("embedtune.load_sample", lambda: small)
    monkeypatch.setattr("embedtune.tune", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "out"
    run("tune", "--sample", "--model", tiny_model_folder, "-o", out, "--max-tokens", 60, "--test-split", "test")
    data = RetrievalDataset.load_from_disk(out / "data")
    tested = {data.query_texts[query] for query in data.relevant("test")}
    assert tested
    assert set(folder.trained_on(out)) == set(data.query_texts.values()) - tested


def test_a_dataset_of_ones_own_is_read_and_kept_beside_the_run(tiny_model_folder, monkeypatch, tmp_path):
    pairs = [(f"press the {word}", [f"where is the {word}"]) for word in WORDS[15:23]]
    RetrievalDataset.from_pairs(pairs, test_size=0.25, dev_size=0).save_to_disk(tmp_path / "mine")
    seen = []
    monkeypatch.setattr(
        "embedtune.tune", lambda model, data, **_: seen.append(data) or (_ for _ in ()).throw(ValueError("x"))
    )
    run("tune", "--data", tmp_path / "mine", "--model", tiny_model_folder, "-o", tmp_path / "out")
    assert seen[0].query_texts == RetrievalDataset.load_from_disk(tmp_path / "out" / "data").query_texts


@pytest.mark.parametrize("name", ["anthropic:claude-haiku-4-5", "openai:gpt-5-mini", "local:Qwen/Qwen3-4B:free"])
def test_a_language_model_is_named_by_provider_and_model(name, monkeypatch):
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    assert tuning.language_model(name).name == name.partition(":")[2]


def test_a_budget_without_a_known_price_is_refused_before_anything_is_read(order, llm, monkeypatch):
    llm.price = None
    monkeypatch.setattr("embedtune.read_documents", lambda *_: pytest.fail("read"))
    refused = run(*order, "--budget", 5, "--yes")
    assert refused.exit_code == shell.FAILED
    assert "budget_usd needs the price" in refused.stderr


def test_every_exit_code_is_one_of_its_own():
    codes = [shell.DONE, shell.FAILED, 2, shell.KEEP, shell.CANNOT_TELL, shell.INTERRUPTED]
    assert len(set(codes)) == len(codes)
    assert all(f"{code} " in run("tune", "--help").stdout.partition("Exit codes:")[2] for code in codes)


def test_an_order_is_not_changed_by_where_it_goes():
    order = tuning.Order((), True, None, "m", None, None, 4, 250, "", False, 5, None, None, 0, Path("a"))
    assert "output" not in tuning.Material(replace(order), None, ()).plan


def test_the_help_on_the_page_is_what_the_commands_print():
    blocks = re.findall(r"```\n\$ embedtune ([^\n]*--help)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [arguments for arguments, _ in blocks] == ["--help", "tune --help"]
    for arguments, shown in blocks:
        assert run(*arguments.split()).stdout == shown


def test_the_page_fits_80_columns_where_it_shows_a_terminal():
    lines = [
        line
        for block in re.findall(r"```\n(\$.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
    ]
    assert max(map(len, lines)) <= 82  # the dollar sign


def test_what_the_page_shows_can_be_typed():
    shown = re.findall(r"^\$ embedtune (\w+)([^\n]*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {command for command, _ in shown} == set(COMMANDS)
    for command, rest in shown:
        options = set(re.findall(r"--[a-z-]+", rest))
        assert options <= set(re.findall(r"--[a-z-]+", run(command, "--help").stdout)), rest
