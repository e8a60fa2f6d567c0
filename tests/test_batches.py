import logging
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from llm_server import Fault, Handler, clean_environment, make_chunks, serving

from embedtune.llms import retries
from embedtune.llms.anthropic import AnthropicLLM
from embedtune.llms.errors import GenerationStoppedError
from embedtune.llms.openai import OpenAILLM
from embedtune.llms.protocol import Price
from embedtune.questions.generation import generate_questions
from embedtune.questions.requests import batches
from embedtune.questions.requests.ledger import Ledger


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setattr(batches, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(batches, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(retries, "seconds_to_wait", lambda state: 0.01)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def claude(server, **options):
    client = server.anthropic_client()
    return AnthropicLLM("claude-sonnet-5-5", client=client, **options)


def run(server, chunks, folder, **options):
    return generate_questions(chunks, claude(server), output_dir=folder, mode="batch", **options)


def custom_ids(server):
    return Counter(request["custom_id"] for batch in server.batches for request in batch.requests)


def num_stored(folder):
    with Ledger(folder) as ledger:
        return len(ledger._select("SELECT key FROM request WHERE reply IS NOT NULL"))


def some_outcome(outcome, *, of=10):
    """The first `of` requests end in one way, all others succeed."""
    chosen = set()

    def outcome_of(request):
        if len(chosen) < of:
            chosen.add(request["custom_id"])
        return outcome if request["custom_id"] in chosen else "succeeded"

    return outcome_of


def test_a_batch_gives_what_live_requests_give_at_half_the_price(server, tmp_path):
    chunks = make_chunks(40)
    live = generate_questions(chunks, claude(server), output_dir=tmp_path / "live")
    spent = server.microdollars
    batch = run(server, chunks, tmp_path / "batch")
    assert batch.kept == live.kept
    assert server.microdollars - spent == pytest.approx(spent / 2)
    assert batch.cost_usd == pytest.approx(live.cost_usd / 2, rel=0.01)
    assert len(server.batches) == 1


def test_a_rerun_asks_the_server_nothing_in_either_mode(server, tmp_path):
    chunks = make_chunks(10)
    first = run(server, chunks, tmp_path)
    before = len(server.log)
    assert run(server, chunks, tmp_path) == first
    assert generate_questions(chunks, claude(server), output_dir=tmp_path) == first
    assert len(server.log) == before


def test_a_batch_is_waited_for(tmp_path):
    with serving(batch_seconds=0.3) as server:
        assert run(server, make_chunks(5), tmp_path).failed == {}
        assert server.num_requests("batches_retrieve") > 2


def test_what_expired_is_sent_again_and_nothing_else(server, tmp_path):
    outcome, expired = some_outcome("expired"), set()

    def once(request):
        if len(server.batches) > 1 and request in server.batches[1].requests:
            return "succeeded"
        if outcome(request) == "expired":
            expired.add(request["custom_id"])
        return outcome(request)

    server.batch_outcome = once
    assert run(server, make_chunks(30), tmp_path).failed == {}
    assert {request["custom_id"] for request in server.batches[1].requests} == expired
    assert len(expired) == 10
    assert max(custom_ids(server).values()) == 2
    assert len(server.batches) == 2


def test_what_expires_for_ever_fails_after_a_few_batches(server, tmp_path):
    server.batch_outcome = lambda request: "expired"
    questions = run(server, make_chunks(4), tmp_path)
    assert set(questions.failed.values()) == {"expired"}
    assert len(server.batches) == batches.MAX_FRUITLESS_ROUNDS


@pytest.mark.parametrize(("outcome", "reason"), [("errored", "bad request"), ("canceled", "canceled")])
def test_what_failed_is_reported_and_not_sent_again(server, tmp_path, outcome, reason):
    server.batch_outcome = some_outcome(outcome)
    questions = run(server, make_chunks(30), tmp_path)
    assert list(questions.failed.values()) == [reason] * 10
    assert len(server.batches) == 1
    assert num_stored(tmp_path) == 20


def test_unknown_results_are_left_alone(server, tmp_path):
    server.extra_results = [{"custom_id": "somebody-elses", "result": {"type": "expired"}}]
    assert run(server, make_chunks(10), tmp_path).failed == {}
    assert num_stored(tmp_path) == 10


def test_results_that_break_off_are_read_again(server, tmp_path):
    server.cut_results_after.extend([3, 11, 17])
    assert run(server, make_chunks(20), tmp_path).failed == {}
    assert len(server.batches) == 1
    assert num_stored(tmp_path) == 20


@pytest.mark.parametrize("route", ["batches_retrieve", "batches_results", "batches_list"])
@pytest.mark.parametrize("fault", [Fault(status=529), Fault(status=500), Fault(drop=True), Fault(body=b"<html>")])
def test_a_batch_outlives_a_network_that_fails_for_a_while(server, tmp_path, route, fault):
    if route == "batches_list":
        server.queue("batches_create", Fault(drop=True))
    server.queue(route, fault, times=3)
    assert run(server, make_chunks(6), tmp_path).failed == {}
    assert len(server.batches) == 1


def test_a_network_that_stays_away_ends_the_run_but_not_the_batch(server, tmp_path):
    server.queue("batches_retrieve", Fault(status=500), times=batches.MAX_TRIES)
    with pytest.raises(GenerationStoppedError, match=r"continue at the provider; run again to collect"):
        run(server, make_chunks(6), tmp_path)
    assert run(server, make_chunks(6), tmp_path).failed == {}
    assert len(server.batches) == 1


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(truncate=True), Fault(body=b"<html>busy</html>")])
def test_a_batch_whose_creation_was_not_confirmed_is_found_and_not_made_again(server, tmp_path, fault, caplog):
    caplog.set_level(logging.INFO)
    server.queue("batches_create", fault)
    assert run(server, make_chunks(12), tmp_path).failed == {}
    assert len(server.batches) == 1
    assert set(custom_ids(server).values()) == {1}
    assert "which an earlier request had created" in caplog.text


@pytest.mark.parametrize("status", [429, 500, 529])
def test_a_batch_that_was_not_created_is_created_later(server, tmp_path, status):
    server.queue("batches_create", Fault(status=status))
    assert run(server, make_chunks(5), tmp_path).failed == {}
    assert len(server.batches) == 1


def test_a_batch_that_is_refused_stops_the_run(server, tmp_path):
    server.queue("batches_create", Fault(status=400, message="requests: invalid"))
    with pytest.raises(GenerationStoppedError, match=r"batch was refused: HTTP 400: requests: invalid"):
        run(server, make_chunks(5), tmp_path)
    assert run(server, make_chunks(5), tmp_path).failed == {}


@pytest.mark.parametrize("route", ["batches_retrieve", "batches_results"])
def test_a_batch_that_is_not_found_for_a_moment_is_asked_for_again(server, tmp_path, route):
    server.queue(route, Fault(status=404, message="not found"), times=3)
    assert run(server, make_chunks(5), tmp_path).failed == {}
    assert len(server.batches) == 1


@pytest.mark.parametrize("fate", ["deleted", "archived"])
def test_a_batch_that_is_gone_is_named_with_a_way_on_and_sent_again_once_given_up(tmp_path, monkeypatch, fate):
    chunks = make_chunks(5)
    with serving() as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnthropicLLM, "batch_status", crash)
            with pytest.raises(CrashError):
                run(server, chunks, tmp_path)
        batch_row = Handler.batch_row
        if fate == "deleted":
            server.batches[0].deleted = True
        else:
            gone = {"results_url": None, "archived_at": "2026-11-01T00:00:00Z"}
            monkeypatch.setattr(Handler, "batch_row", lambda self, batch: batch_row(self, batch) | gone)
        for _ in range(2):
            with pytest.raises(GenerationStoppedError, match=r"batch msgbatch_0000.*give_up_batch\('msgbatch_0000'\)"):
                run(server, chunks, tmp_path)
        monkeypatch.setattr(Handler, "batch_row", batch_row)
        with Ledger(tmp_path) as ledger:
            before = ledger.spent()
            ledger.give_up_batch("msgbatch_0000")
            assert ledger.spent() == before > 0  # it may have been paid for
            with pytest.raises(ValueError, match="no open batch 'msgbatch_0000'"):
                ledger.give_up_batch("msgbatch_0000")
        assert run(server, chunks, tmp_path).failed == {}
        assert len(server.batches) == 2


def test_a_batch_that_is_gone_keeps_no_other_chunks_from_being_asked_about(tmp_path, caplog):
    chunks = make_chunks(12)
    with serving() as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnthropicLLM, "batch_status", crash)
            with pytest.raises(CrashError):
                run(server, chunks[:5], tmp_path)
        server.batches[0].deleted = True
        assert run(server, chunks[5:], tmp_path).failed == {}
        assert "does not know the batch msgbatch_0000" in caplog.text
        assert generate_questions(chunks[5:], claude(server), output_dir=tmp_path).failed == {}
        assert num_stored(tmp_path) == 7
        with pytest.raises(GenerationStoppedError, match=r"batch msgbatch_0000.*give_up_batch\('msgbatch_0000'\)"):
            run(server, [*chunks, *make_chunks(15)[12:]], tmp_path)
        assert num_stored(tmp_path) == 10  # the new ones are answered before the run says so


def test_the_results_of_a_batch_are_stored_before_they_are_read(server, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnthropicLLM, "read", crash)
        with pytest.raises(CrashError):
            run(server, make_chunks(6), tmp_path)
    assert num_stored(tmp_path) == 6
    questions = run(server, make_chunks(6), tmp_path)
    assert questions.failed == {}
    assert len(server.batches) == 1
    assert (
        questions.lost_usd * 1e6 >= server.microdollars
    )  # what they cost is not known yet: a ceiling, and named as one
    questions = run(server, make_chunks(7), tmp_path)
    assert questions.cost_usd == pytest.approx(server.microdollars / 1e6, abs=8e-6)
    assert questions.lost_usd == 0


@pytest.mark.parametrize("moment", ["before create", "after create", "after naming", "in results"])
def test_after_a_crash_at_any_moment_the_next_run_has_one_batch_for_one_intent(server, tmp_path, monkeypatch, moment):
    chunks = make_chunks(12)
    with pytest.MonkeyPatch.context() as patch:
        if moment == "before create":
            patch.setattr(AnthropicLLM, "create_batch", crash)
        elif moment == "after create":
            patch.setattr(Ledger, "name_batch", crash)
        elif moment == "after naming":
            patch.setattr(AnthropicLLM, "batch_status", crash)
        else:
            patch.setattr(batches, "_NUM_TOGETHER", 4)
            patch.setattr(Ledger, "finish_batch", crash)
        with pytest.raises(CrashError):
            run(server, chunks, tmp_path)
    assert run(server, chunks, tmp_path).failed == {}
    assert len(server.batches) == 1
    assert set(custom_ids(server).values()) == {1}
    assert num_stored(tmp_path) == 12


class CrashError(BaseException):
    pass


def crash(*args, **kwargs):
    raise CrashError


def test_a_newer_foreign_batch_of_the_same_size_is_not_taken_for_ones_own(server, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "name_batch", crash)
        with pytest.raises(CrashError):
            run(server, make_chunks(5), tmp_path / "mine")
    run(server, make_chunks(40)[30:35], tmp_path / "other")
    assert run(server, make_chunks(5), tmp_path / "mine").failed == {}
    assert len(server.batches) == 2
    assert num_stored(tmp_path / "mine") == 5


def test_an_own_batch_that_was_collected_is_not_taken_for_another(server, tmp_path):
    chunks = make_chunks(10)
    run(server, chunks[:5], tmp_path)
    server.queue("batches_create", Fault(status=500))
    assert run(server, chunks, tmp_path).failed == {}
    assert [len(batch.requests) for batch in server.batches] == [5, 5]
    assert set(custom_ids(server).values()) == {1}


def test_a_foreign_batch_is_passed_over_if_ones_own_was_never_made(server, tmp_path):
    run(server, make_chunks(40)[30:35], tmp_path / "other")
    server.queue("batches_create", Fault(status=500))
    assert run(server, make_chunks(5), tmp_path / "mine").failed == {}
    assert len(server.batches) == 2


def test_live_requests_are_refused_while_a_batch_has_them(server, tmp_path, monkeypatch):
    chunks = make_chunks(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnthropicLLM, "batch_status", lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(server, chunks, tmp_path)
    with pytest.raises(ValueError, match=r"5 of the chunks are in a batch.*mode='batch'"):
        generate_questions(chunks, claude(server), output_dir=tmp_path)
    assert server.num_requests("messages") == 0
    assert run(server, chunks, tmp_path).failed == {}


def test_too_many_requests_for_one_batch_make_several(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_REQUESTS", 8)
    assert run(server, make_chunks(30), tmp_path).failed == {}
    assert [len(batch.requests) for batch in server.batches] == [8, 8, 8, 6]


def test_the_limits_are_within_those_of_the_provider():
    assert batches.MAX_REQUESTS <= 100_000
    assert batches.MAX_BYTES <= 256_000_000


def test_too_many_bytes_for_one_batch_make_several(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_BYTES", 20_000)
    assert run(server, make_chunks(30), tmp_path).failed == {}
    assert len(server.batches) > 3
    assert set(custom_ids(server).values()) == {1}


def test_a_budget_holds_for_batches_too_and_is_used_bit_by_bit(server, tmp_path):
    chunks = make_chunks(60)
    questions = run(server, chunks, tmp_path, budget_usd=0.2)
    assert 100_000 < server.microdollars <= 200_000
    assert set(questions.failed.values()) == {"not sent: over the budget of $0.2"}
    assert len(server.batches) > 1
    assert run(server, chunks, tmp_path, budget_usd=5.0).failed == {}
    assert set(custom_ids(server).values()) == {1}


def test_results_are_deleted_from_the_server_only_if_asked(server, tmp_path):
    run(server, make_chunks(3), tmp_path / "a")
    assert not server.batches[0].deleted
    llm = claude(server, delete_results=True)
    generate_questions(make_chunks(3), llm, output_dir=tmp_path / "b", mode="batch")
    assert server.batches[1].deleted


def test_a_model_without_batches_says_so(tmp_path):
    llm = OpenAILLM("m", base_url="http://127.0.0.1:1/v1", price=Price(0, 0))
    with pytest.raises(ValueError, match=r"OpenAILLM takes no batches"):
        generate_questions(make_chunks(1), llm, output_dir=tmp_path, mode="batch")


def test_ctrl_c_while_waiting_says_how_to_go_on(tmp_path, caplog, monkeypatch):
    with serving(batch_seconds=0.4) as server:

        def interrupted(seconds):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "time", SimpleNamespace(sleep=interrupted, time=time.time))
            with pytest.raises(KeyboardInterrupt):
                run(server, make_chunks(4), tmp_path)
        assert "Run the same again to go on" in caplog.text
        assert run(server, make_chunks(4), tmp_path).failed == {}
        assert len(server.batches) == 1


def test_threads_are_not_left_behind(server, tmp_path):
    before = threading.active_count()
    run(server, make_chunks(3), tmp_path)
    time.sleep(0.05)
    assert threading.active_count() <= before + 3  # the server's own
