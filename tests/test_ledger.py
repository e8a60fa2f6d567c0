import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from embedtune.questions.requests import ledger as ledger_module
from embedtune.questions.requests.ledger import Ledger, StoredReply


def reply(key, cost=7, size=100):
    return StoredReply(key, "model", cost, {"text": "x" * size})


def rows(folder):
    with Ledger(folder) as ledger:
        return {key for (key,) in ledger._select("SELECT key FROM request WHERE reply IS NOT NULL")}


def test_replies_are_there_after_reopening(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.put(reply("a"), reply("b", cost=5))
    with Ledger(tmp_path) as ledger:
        assert ledger.stored(["a", "b", "c"]) == {"a", "b"}
        assert ledger.reply("a") == {"text": "x" * 100}
        assert ledger.reply("c") is None
        assert ledger.spent() == 12
        assert ledger.paid(["b", "c"]) == 5


def test_the_first_reply_to_a_key_stays(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.put(StoredReply("a", "model", 1, {"text": "first"}))
        ledger.put(StoredReply("a", "model", 9, {"text": "second"}))
        assert ledger.reply("a") == {"text": "first"}
        assert ledger.spent() == 1


def test_a_reply_takes_the_place_of_what_was_reserved_for_it(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.reserve("a", 100)
        assert ledger.spent() == 100
        assert ledger.stored(["a"]) == set()
        ledger.put(reply("a", cost=30))
        assert ledger.spent() == 30


def test_a_request_that_was_not_paid_for_costs_nothing(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.reserve("a", 100)
        ledger.release("a")
        assert ledger.spent() == 0


def test_a_lost_request_counts_as_paid_for_even_when_it_is_sent_again(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.reserve("a", 100)
    with Ledger(tmp_path) as ledger:
        ledger.reserve("a", 110)
        assert ledger.spent() == 210
        ledger.put(reply("a", cost=30))
        assert ledger.spent() == 130


def test_batches_that_are_under_way_are_counted_until_they_are_done(tmp_path):
    with Ledger(tmp_path) as ledger:
        batch = ledger.intend_batch(["a", "b"], model="model", microdollars=50)
        assert ledger.open_batches() == [batch]
        ledger.name_batch(batch, "batch_1")
    with Ledger(tmp_path) as ledger:
        (found,) = ledger.open_batches()
        assert (found.name, found.keys, found.created) == ("batch_1", ("a", "b"), batch.created)
        assert ledger.spent() == 50
        ledger.finish_batch(found)
        assert ledger.open_batches() == []
        assert ledger.batch_names() == {"batch_1"}
        assert ledger.spent() == 0


def test_lone_surrogates_in_a_reply_do_no_harm(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.put(StoredReply("a", "model", 1, {"text": "half \ud83d a pair"}))
        assert "half" in ledger.reply("a")["text"]


def test_many_threads_lose_nothing(tmp_path):
    def write(number):
        for i in range(25):
            ledger.reserve(f"{number}-{i}", 10)
            ledger.put(reply(f"{number}-{i}", cost=1))

    with Ledger(tmp_path) as ledger:
        threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.spent() == 400
    assert len(rows(tmp_path)) == 400


@pytest.mark.parametrize("other", ["process", "ledger"])
def test_a_folder_in_use_is_refused_and_says_so(tmp_path, other):
    if other == "ledger":
        with Ledger(tmp_path), pytest.raises(RuntimeError, match=r"in use by another run.*use another folder"):
            Ledger(tmp_path)
    else:
        code = f"from embedtune.questions.requests.ledger import Ledger; l = Ledger({str(tmp_path)!r}); print(1, flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            with pytest.raises(RuntimeError, match="in use by another run"):
                Ledger(tmp_path)
            process.kill()
    Ledger(tmp_path).close()


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("my notes " * 200)
    with pytest.raises(ValueError, match=r"is not a ledger.*another folder"):
        Ledger(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_text() == "my notes " * 200


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Ledger(tmp_path / "file" / "folder")
    (tmp_path / "ledger.sqlite").mkdir()
    with pytest.raises(OSError, match="cannot use"):
        Ledger(tmp_path)


def test_a_read_only_ledger_is_refused_with_the_remedy(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.put(reply("a"))

    def read_only(path, **options):
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module.sqlite3, "connect", _wrapped(read_only))
        with pytest.raises(OSError, match=r"cannot use.*make the folder writable"):
            Ledger(tmp_path)
    assert rows(tmp_path) == {"a"}


def _wrapped(connect, original=sqlite3.connect):
    def replacement(path, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", original)
            return connect(path, **options)

    return replacement


class Failing(sqlite3.Connection):
    """A connection whose Nth statement fails."""

    countdown = 10**9

    def execute(self, *args):
        type(self).countdown -= 1
        if type(self).countdown == 0:
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(*args)


def fill(folder, acknowledged):
    """Do a bit of everything, and note what was acknowledged."""
    with Ledger(folder) as ledger:
        for key in "abc":
            ledger.reserve(key, 10)
            ledger.put(reply(key))
            acknowledged.add(key)
        batch = ledger.intend_batch(["d", "e"], model="model", microdollars=5)
        ledger.name_batch(batch, f"batch_{batch.id}")
        ledger.put(reply("d"), reply("e"))
        acknowledged |= {"d", "e"}
        ledger.finish_batch(batch)


def test_whichever_statement_fails_nothing_acknowledged_is_lost(tmp_path, monkeypatch):
    original = sqlite3.connect
    monkeypatch.setattr(
        ledger_module.sqlite3, "connect", lambda path, **options: original(path, factory=Failing, **options)
    )
    monkeypatch.setattr(ledger_module, "SYNC_SECONDS", 0)
    num_failures = 0
    for n in range(1, 200):
        folder, acknowledged = tmp_path / str(n), set()
        Failing.countdown = n
        try:
            fill(folder, acknowledged)
        except OSError:
            num_failures += 1
        failed, Failing.countdown = Failing.countdown <= 0, 10**9
        assert rows(folder) >= acknowledged
        with Ledger(folder) as ledger:
            assert ledger._select("PRAGMA integrity_check") == [("ok",)]
        fill(folder, set())
        assert rows(folder) == set("abcde")
        if not failed:
            break
    assert num_failures > 20
    assert not failed, "the last round should have got through"


def test_a_full_disk_is_reported_and_leaves_a_ledger_that_works_once_there_is_room(tmp_path):
    acknowledged = set()
    with Ledger(tmp_path) as ledger:
        ledger._database.execute("PRAGMA max_page_count = 20")

        def put_many():
            for i in range(100):
                ledger.put(reply(f"k{i}", size=5000))
                acknowledged.add(f"k{i}")

        with pytest.raises(OSError, match=r"full.*Make room.*run again"):
            put_many()
    assert 1 < len(acknowledged) < 100
    assert rows(tmp_path) == acknowledged
    with Ledger(tmp_path) as ledger:
        ledger.put(reply("more", size=5000))
    assert rows(tmp_path) == acknowledged | {"more"}


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_write_that_the_system_refuses_loses_nothing(tmp_path):
    code = f"""
import resource, signal
from embedtune.questions.requests.ledger import Ledger, StoredReply
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for i in range(100):
        ledger.put(StoredReply(f"k{{i}}", "m", 1, {{"text": "x" * 5000}}))
        print(f"k{{i}}", flush=True)
except OSError as err:
    print(err)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    acknowledged = {line for line in output if line.startswith("k")}
    assert 5 < len(acknowledged) < 100
    assert any("cannot use" in line for line in output)
    assert rows(tmp_path) >= acknowledged


WRITER = """
import sys, threading
from embedtune.questions.requests.ledger import Ledger, StoredReply
ledger = Ledger(sys.argv[1])
def write(n):
    for i in range(10**6):
        key = f"{sys.argv[2]}-{n}-{i}"
        ledger.reserve(key, 10)
        ledger.put(StoredReply(key, "m", 1, {"text": "x" * 300}))
        sys.stdout.write(key + "\\n"); sys.stdout.flush()
for n in range(4):
    threading.Thread(target=write, args=(n,)).start()
"""


@pytest.mark.parametrize("num_kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_replies_survive_kill_as_soon_as_they_are_acknowledged(tmp_path, num_kills):
    acknowledged = set()
    for kill in range(num_kills):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(kill)], stdout=subprocess.PIPE, text=True
        ) as process:
            acknowledged.add(process.stdout.readline().strip())
            time.sleep(0.02 + 0.05 * (kill % 4))
            os.kill(process.pid, signal.SIGKILL)
            acknowledged |= {line.strip() for line in process.stdout if line.endswith("\n")}
        assert rows(tmp_path) >= acknowledged
    num_stored = len(rows(tmp_path))
    with Ledger(tmp_path) as ledger:
        assert ledger._select("PRAGMA integrity_check") == [("ok",)]
        assert ledger.spent() <= num_stored + 4 * num_kills * 10  # at most what was under way is in doubt


def test_replies_are_kept_as_they_came(tmp_path):
    body = {"b": [1, {"ü": None}], "a": "Grüße 東京 \u0000"}
    with Ledger(tmp_path) as ledger:
        ledger.put(StoredReply("a", "model", 1, body))
        assert ledger.reply("a") == body
        assert json.dumps(ledger.reply("a"), sort_keys=True) == json.dumps(body, sort_keys=True)
