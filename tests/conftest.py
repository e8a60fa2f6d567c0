"""Tiny models, built here: no test needs the internet, and training one takes a second."""

from __future__ import annotations

import copy
import os
import signal
import string

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# A shell starts what runs in the background with Ctrl-C ignored, and the tests of Ctrl-C press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


WORDS = [
    "the",
    "a",
    "of",
    "to",
    "in",
    "is",
    "and",
    "for",
    "on",
    "what",
    "who",
    "how",
    "when",
    "where",
    "which",
    "pump",
    "valve",
    "sensor",
    "door",
    "filter",
    "battery",
    "cable",
    "harbour",
    "island",
    "ship",
    "crane",
    "engine",
    "window",
    "roof",
    "garden",
    "river",
    "stone",
    "bread",
    "wool",
    "lamp",
    "clock",
    "paper",
    "glass",
    "chair",
    "table",
    "open",
    "close",
    "check",
    "replace",
    "press",
    "hold",
    "wait",
    "call",
    "report",
    "order",
    "clean",
    "dry",
    "cold",
    "warm",
    "red",
    "blue",
    "green",
    "old",
    "new",
    "fast",
    "slow",
    "one",
    "two",
    "three",
]


def build_tokenizer():
    """A WordPiece tokenizer over a few words, letters and digits, so that any ASCII text can be encoded."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    pieces += [c for c in string.printable.strip() if c not in pieces]
    pieces += [f"##{c}" for c in string.ascii_lowercase + string.digits]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A folder with a one-layer BERT of random weights as a SentenceTransformer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = tmp_path_factory.mktemp("backbone")
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    transformer = Transformer(str(backbone), max_seq_length=64)
    folder = tmp_path_factory.mktemp("tiny-model")
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean")], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def _shared_tiny_model(tiny_model_folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_model_folder), device="cpu")


@pytest.fixture
def tiny_model(_shared_tiny_model):
    """A private copy of the tiny model."""
    return copy.deepcopy(_shared_tiny_model)


@pytest.fixture(scope="session")
def _shared_cross_encoder(tmp_path_factory):
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("cross-encoder")
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=1,
        initializer_range=0.4,  # so that scores differ
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu", max_length=64)


@pytest.fixture
def cross_encoder(_shared_cross_encoder):
    """A private copy of a tiny cross-encoder of random weights."""
    return copy.deepcopy(_shared_cross_encoder)
