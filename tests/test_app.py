"""The page of ``embedtune app``: what it does, what it shows, who may reach it, and the same in a real browser."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from test_cli import QUICK, run, write_documents

import embedtune as et
from embedtune import folder
from embedtune.app import desk as desk_module
from embedtune.app import markup, server
from embedtune.app.desk import Asked, Desk
from embedtune.dataset import RetrievalDataset
from embedtune.improvement.rounds import Candidate, Check, Round
from embedtune.retrieval.hits import Hit

HOSTILE = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>${window.owned = 3}{{window.owned}}"
    "</article></details><svg onload='window.owned = 4'> [a](javascript:window.owned=5) pump"
)


@pytest.fixture(scope="module")
def made(tiny_model_folder, tmp_path_factory):
    """A folder of `embedtune tune` on a tiny model, with a document that would like to be run."""
    place = tmp_path_factory.mktemp("app")
    (write_documents(place / "documents") / "<img src=x>.txt").write_text(HOSTILE, encoding="utf-8")
    model = et.load_model(str(tiny_model_folder))
    chunks = et.chunk_documents(et.read_documents(place / "documents"), max_tokens=100, tokenizer=model)
    asked = [et.Question(f"{i}", " ".join(chunk.text.split()[:3]), (chunk.id,)) for i, chunk in enumerate(chunks)]
    et.build_dataset(chunks, asked, test_size=0.3, dev_size=0).save_to_disk(place / "data")
    done = run("tune", "--data", place / "data", "--model", tiny_model_folder, *QUICK, "--test-split", "test", "-o", place / "out")  # fmt: skip
    assert (place / "out" / "retriever").is_dir(), done.stderr
    return place / "out"


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def desk(out):
    return Desk(out)


def test_a_question_is_searched_with_both_and_logged_with_what_the_tuned_retriever_found(desk, out, tiny_model_folder):
    asked = desk.ask("pump valve")
    tuned = et.Retriever.load(out / "retriever").search("pump valve", k=10)
    base = et.Retriever.from_dataset(
        str(tiny_model_folder), RetrievalDataset.load_from_disk(out / "data"), word_weight=0
    )
    assert asked.hits == tuple(tuned)
    assert [hit.id for hit in asked.base] == [hit.id for hit in base.search("pump valve", k=10)]
    assert {hit.words for hit in asked.base} == {0.0}
    (logged,) = et.FeedbackLog(out / "feedback.sqlite").questions()
    assert (logged.number, logged.text) == (asked.number, "pump valve")
    assert logged.retrieved == tuple((hit.id, pytest.approx(hit.score)) for hit in asked.hits)
    assert logged.model == desk.retriever.learned.model_fingerprint


def test_what_people_say_is_in_the_log_and_several_chunks_may_answer(desk):
    asked = desk.rate(desk.ask("pump valve"), thumbs_up=False)
    assert desk.log.questions()[0].thumbs_up is False
    first, second = asked.hits[:2]
    named = desk.name(desk.name(desk.name(asked, second), first), second)
    assert named.is_named(first)
    assert not named.is_named(asked.hits[2])
    assert desk.log.questions()[0].named == (second.id, first.id)
    assert desk.log.questions()[0].named_by == "person"
    taken_back = desk.name_none(named)
    assert desk.log.questions()[0].named == ()
    assert desk.name(taken_back, first).named == (first,)


def test_a_miss_is_to_be_labelled_until_it_is_the_newest_first(desk):
    first, second, liked = (desk.ask(text) for text in ("pump", "valve", "door"))
    for asked in (first, second):
        desk.rate(asked, thumbs_up=False)
    desk.rate(liked, thumbs_up=True)
    assert [miss.text for miss in desk.open_misses()] == ["valve", "pump"]
    shown = desk.candidates(desk.open_misses()[0])
    assert (shown.number, shown.text, shown.thumbs_up) == (second.number, "valve", False)
    desk.name(shown, shown.hits[0])
    desk.name_none(desk.candidates(desk.open_misses()[0]))
    assert desk.open_misses() == []


def test_a_log_that_cannot_be_written_costs_no_answer(desk, monkeypatch):
    monkeypatch.setattr(desk.log, "record", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    asked = desk.ask("pump")
    assert asked.hits
    assert (asked.number, asked.problem) == (None, "disk full")
    assert desk.rate(asked, thumbs_up=True).thumbs_up is True
    assert desk.name(asked, asked.hits[0]).named == asked.hits[:1]


def test_a_rank_says_what_it_was_before_only_where_it_changed():
    a, b, c = (Hit(name, 1.0, name) for name in "abc")
    asked = Asked(1, "?", hits=(b, a, c), base=(a, b))
    assert [markup.rank_note(asked, hit, rank) for rank, hit in enumerate(asked.hits, 1)] == [
        "was 2",
        "was 1",
        "was below 2",
    ]
    assert markup.rank_note(replace(asked, base=(a, b, c)), c, 3) == ""
    assert markup.rank_note(replace(asked, base=()), c, 3) == ""


def test_a_saved_retriever_alone_has_nothing_beside_it_unless_a_base_is_named(out, tiny_model_folder, tmp_path):
    shutil.copytree(out / "retriever", tmp_path / "alone")
    alone = Desk(tmp_path / "alone", feedback=tmp_path / "log.sqlite")
    assert alone.base is None
    assert alone.ask("pump").base == ()
    assert alone.examples() == []
    assert "--data" in alone.obstacle()
    assert Desk(tmp_path / "alone", base=str(tiny_model_folder), feedback=tmp_path / "log.sqlite").ask("pump").base


def test_the_vectors_of_the_base_are_made_once_and_again_for_other_chunks(out, tmp_path, monkeypatch, caplog):
    place = shutil.copytree(out, tmp_path / "copy", ignore=shutil.ignore_patterns("base"))
    first = Desk(place).ask("pump").base
    built = desk_module.build_index
    with monkeypatch.context() as patch:
        patch.setattr(desk_module, "build_index", lambda *_: pytest.fail("encoded again"))
        assert Desk(place).ask("pump").base == first
    next((place / "base").iterdir()).write_bytes(b"torn")
    assert Desk(place).ask("pump").base == first
    assert "are made again" in caplog.text
    retriever = et.Retriever.load(place / "retriever")
    retriever.add([et.Chunk("new#0", "new", "pump", 0, 4)])
    retriever.save(place / "retriever")
    seen = []
    monkeypatch.setattr(desk_module, "build_index", lambda *given: seen.append(given) or built(*given))
    assert "new#0" in {hit.id for hit in Desk(place).ask("pump").base}
    assert len(seen) == 1


def test_examples_are_questions_that_tuning_fixed(desk):
    fixed = desk.verdict.fixed[desk.verdict.k]
    texts = RetrievalDataset.load_from_disk(desk.data).query_texts
    assert set(desk.examples()) <= {texts[query] for query in fixed}
    assert bool(desk.examples()) == bool(fixed)


def round_of(out, status):
    checks = (
        Check("locked test", status == "accepted", "lower <bound>"),
        Check("general knowledge", True, "as before"),
    )
    return Round(
        out / "rounds" / "0001", 1, 0, status, "f", "t", "now", (Candidate("tuned", checks),), {"trained on": 3}
    )


@pytest.mark.parametrize("status", ["accepted", "rejected"])
def test_a_new_retriever_serves_on_the_page_once_it_is_accepted(desk, out, monkeypatch, status):
    monkeypatch.setattr(folder, "improved", lambda path, log, data, **_: round_of(out, status))
    before = desk.retriever
    assert desk.improve().status == status
    assert (desk.retriever is not before) == (status == "accepted")


def test_a_second_improvement_at_the_same_time_is_refused_and_after_an_error_the_next_may_start(desk, out, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_, **__):
        begun.set()
        go_on.wait(10)
        raise ValueError("too few")

    monkeypatch.setattr(folder, "improved", wait)
    errors = []

    def improve():
        try:
            desk.improve()
        except ValueError as err:
            errors.append(str(err))

    first = threading.Thread(target=improve)
    first.start()
    begun.wait(10)
    with pytest.raises(ValueError, match="running already"):
        desk.improve()
    go_on.set()
    first.join()
    assert errors == ["too few"]
    monkeypatch.setattr(folder, "improved", lambda *_, **__: round_of(out, "rejected"))
    assert desk.improve().status == "rejected"


def test_a_report_of_a_round_begins_with_the_headline_and_names_what_failed(out):
    kept, shipped = (markup.round_report(round_of(out, status)) for status in ("rejected", "accepted"))
    assert kept.startswith("<h2>Keep what you have: the new retriever did not pass: locked test.</h2>")
    assert "<b>failed</b>: locked test. lower &lt;bound&gt;" in kept
    assert shipped.startswith("<h2>Ship it: ")
    assert "failed" not in shipped


def test_no_text_of_a_document_or_an_error_is_markup():
    hit = Hit(HOSTILE, 0.9, HOSTILE, document_id=HOSTILE, headings=(HOSTILE,), similarity=0.5, words=0.4)
    long = replace(hit, text=HOSTILE * 9)
    made = [markup.hit_card(one, 1, note=HOSTILE) for one in (hit, long)]
    made += [markup.message(HOSTILE), markup.title(HOSTILE, None), markup.figures({HOSTILE: 1}, HOSTILE)]
    for html in made:
        assert "<script" not in html
        assert "<img" not in html
        assert "<svg" not in html
        assert "&lt;script&gt;" in html


@pytest.mark.parametrize(("similarity", "words"), [(0.4, 0.3), (-0.2, 0.0), (30.0, 9.0), (0.0, 1.5)])
def test_a_bar_stays_within_its_frame(similarity, words):
    shown = markup.hit_card(Hit("a", similarity + words, "x", similarity=similarity, words=words), 1)
    widths = [float(part.partition("%")[0]) for part in shown.split("width:")[1:]]
    assert all(width >= 0 for width in widths)
    assert sum(widths) <= 100


def test_only_the_page_itself_is_answered():
    def allowed(hosts=server.LOOPBACK, **headers):
        return server.is_allowed({name.replace("_", "-"): value for name, value in headers.items()}, hosts)

    assert allowed(host="127.0.0.1:7860")
    assert allowed(host="[::1]:7860", origin="http://[::1]:7860", sec_fetch_site="same-origin")
    assert allowed(
        host="localhost:7860", sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document"
    )
    assert not allowed(host="localhost:7860", origin="http://localhost:8080")
    assert not allowed(host="localhost:7860", origin="http://127.0.0.1:7860")
    assert not allowed(host="localhost:7860", origin="null")
    assert not allowed(
        host="localhost:7860", sec_fetch_site="cross-site", sec_fetch_mode="no-cors", sec_fetch_dest="script"
    )
    assert not allowed(
        host="localhost:7860", sec_fetch_site="same-site", sec_fetch_mode="navigate", sec_fetch_dest="iframe"
    )
    assert not allowed(host="elsewhere.example:7860")
    assert not allowed(host="localhost.elsewhere.example")
    assert not allowed(host="")
    assert not allowed(host="[::1")
    assert not allowed()
    assert allowed(hosts=(), host="machine.example:7860", origin="http://machine.example:7860")
    assert not allowed(hosts=(), host="machine.example:7860", origin="http://elsewhere.example")


def test_without_gradio_the_command_says_what_to_install(out, monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    refused = run("app", out)
    assert refused.exit_code == 1
    assert "pip install 'embedtune[app]'" in refused.stderr


SERVER = """
import signal

from embedtune import folder
from embedtune.cli.app import main
from embedtune.improvement.rounds import Candidate, Check, Round

checks = (Check("locked test", False, "lower bound"),)
folder.improved = lambda path, *_, **__: Round(path, 1, 0, "rejected", "f", "t", "now", (Candidate("tuned", checks),))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background lets its children ignore it
main()
"""


@pytest.fixture(scope="module")
def served(made, tmp_path_factory):
    """The folder of a page and its address, served by the command in a process of its own, which ends with Ctrl-C."""
    pytest.importorskip("gradio", reason="needs embedtune[app]")
    out = shutil.copytree(made, tmp_path_factory.mktemp("served") / "out")
    command = [sys.executable, "-c", SERVER, "app", str(out), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("The page is at "):
            break
    else:
        pytest.fail("".join(said))
    rest = threading.Thread(target=process.stderr.read)  # a full pipe would stop it
    rest.start()
    yield out, said[-1].split()[-1]
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    rest.join()
    process.stderr.close()


def get(address, **headers):
    for _ in range(300):
        try:
            with urlopen(Request(address, headers=headers), timeout=30) as reply:
                return reply.status, reply.headers, reply.read().decode()
        except HTTPError as err:
            return err.code, err.headers, ""
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_the_page_is_served_to_itself_and_to_no_other_origin(served):
    _, address = served
    status, headers, page = get(address)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "embedtune" in page
    assert get(f"{address}/config", Origin="https://elsewhere.example")[0] == 403
    assert get(f"{address}/config", Host="elsewhere.example")[0] == 403
    config = json.loads(get(f"{address}/config", Origin=address)[2])
    assert config["components"]
    assert not config["analytics_enabled"]
    assert json.loads(get(f"{address}/gradio_api/info", Origin=address)[2])["named_endpoints"] == {}
    assert {get(f"{address}/{name}")[0] for name in ("docs", "redoc", "openapi.json")} == {404}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(params=[1280, 390])
def page(request, served):
    """The page in chromium on a desktop and on a phone, with what it asked for and what its console says."""
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the dependency group browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": request.param, "height": 800})
        opened.set_default_timeout(60_000)
        opened.asked, opened.complaints = [], []
        opened.on("request", lambda one: opened.asked.append(one.url))
        opened.on("pageerror", lambda one: opened.complaints.append(str(one)))
        opened.on("console", lambda one: opened.complaints.append(one.text) if one.type == "error" else None)
        opened.goto(served[1])
        yield opened
        browser.close()


@pytest.mark.slow
def test_in_a_browser_a_person_asks_judges_labels_and_improves_and_no_document_is_run(page, served):
    out, address = served
    log = et.FeedbackLog(out / "feedback.sqlite")
    page.fill("textarea", "pump script window owned img src")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Not found").click()
    page.get_by_text("Mark the chunk that answers it below").wait_for()
    assert HOSTILE in page.locator(".et-text").all_text_contents()
    page.get_by_role("button", name="This chunk is the answer").first.click()
    page.locator(".et-named").first.wait_for()
    asked = log.questions()[-1]
    assert asked.thumbs_up is False
    assert asked.named == (asked.retrieved[0][0],)

    number = log.record("valve", [])
    log.rate(number, thumbs_up=False)
    page.get_by_role("tab", name="Misses").click()
    page.get_by_role("heading", name="valve").wait_for()
    page.get_by_role("button", name="No chunk answers it").locator("visible=true").click()
    until(lambda: log.questions()[-1].named == ())

    page.get_by_role("tab", name="Improve").click()
    page.get_by_role("button", name="Improve").click()
    page.get_by_role("heading", name="Keep what you have: the new retriever did not pass: locked test.").wait_for()

    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert {one for one in page.asked if not one.startswith((address, "data:", "blob:"))} == set()
    assert page.complaints == []
    log.close()


def until(holds):
    for _ in range(300):
        if holds():
            return
        time.sleep(0.1)
    raise TimeoutError
