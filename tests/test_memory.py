"""The estimate of memory against what training takes, and settings that fit."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from model_repositories import STATIC_LAYOUTS, static_repository
from peft import LoraConfig
from test_trainer import make_data
from torch import nn
from torch.profiler import ProfilerActivity, profile

from embedtune.dataset import RetrievalDataset
from embedtune.models.load import load_model
from embedtune.models.packing.pack import tokens_per_pass
from embedtune.models.query_side import freeze_index
from embedtune.training.arguments import TuningArguments
from embedtune.training.memory.estimate import _passes, estimate_memory
from embedtune.training.memory.presets import arguments_for_gpu
from embedtune.training.memory.simulation import Column, peak_activations
from embedtune.training.trainer import EmbeddingTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

COLUMNS = (Column("query", 8, 12), Column("document", 8, 60))


@pytest.fixture
def arguments(tmp_path):
    settings = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 32, "frozen_layers": 0.0}
    settings |= {"dropout": None}

    def make(**options):
        return TuningArguments(str(tmp_path / "out"), **(settings | options))

    return make


@pytest.fixture(scope="module")
def data():
    return make_data()


def peak_of(step):
    """Run a step and return how many bytes it held at most, by the profiler's record of every allocation."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measured_activations(model, columns, *, bf16=False, gradient_checkpointing=False, accumulating=False):
    """What a step holds on top of the weights and all their gradients."""
    model = copy.deepcopy(model).train()
    gradients = 0
    for parameter in model.parameters():
        if parameter.requires_grad and accumulating:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.requires_grad:
            gradients += parameter.nbytes
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()

    def step():
        texts = [torch.ones(column.num_rows, column.num_tokens, dtype=torch.long) for column in columns]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            vectors = [model({"input_ids": t, "attention_mask": t.clone()})["sentence_embedding"] for t in texts]
        torch.cat(vectors).float().sum().backward()

    return peak_of(step) - gradients


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[1:]])
@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_those_of_a_real_step(tiny_model, bf16, accumulating, columns):
    tiny_model[0].model.pooler = None  # it gets no gradient
    options = {"bf16": bf16, "accumulating": accumulating}
    measured = measured_activations(tiny_model, columns, **options)
    estimate = peak_activations(tiny_model, columns, fused_attention=False, **options)
    assert estimate == pytest.approx(measured, rel=0.05)


@pytest.fixture(params=STATIC_LAYOUTS)
def static_model(request, tmp_path):
    return load_model(static_repository(tmp_path, request.param), device="cpu")


@pytest.mark.parametrize("accumulating", [False, True])
def test_activations_of_a_static_model_are_those_of_a_real_step(static_model, accumulating):
    model = copy.deepcopy(static_model).train()
    (table,) = model.parameters()
    table.grad = torch.zeros_like(table) if accumulating else None

    def step():
        vectors = []
        for column in COLUMNS:
            size = column.num_rows * column.num_tokens
            texts = {
                "input_ids": torch.ones(size, dtype=torch.long),
                "offsets": torch.arange(0, size, column.num_tokens),
            }
            vectors.append(model(texts)["sentence_embedding"])
        torch.cat(vectors).float().sum().backward()

    measured = peak_of(step) - (0 if accumulating else table.nbytes)
    num_tokens = sum(column.num_rows * column.num_tokens for column in COLUMNS)
    # Real kernels give up one index of 8 bytes per token earlier.
    assert 0 <= peak_activations(static_model, COLUMNS, accumulating=accumulating) - measured <= 8 * num_tokens


def test_the_memory_of_a_static_model_is_estimated_and_settings_for_it_are_found(static_model, data, arguments):
    (table,) = static_model.parameters()
    estimate = estimate_memory(static_model, arguments(), data=data)
    assert (estimate.weights, estimate.gradients, estimate.optimizer) == (table.nbytes, table.nbytes, 2 * table.nbytes)
    longest = max(len(static_model.preprocess([text])["input_ids"]) for text in data.corpus["text"])
    assert {column.role: column.num_tokens for column in estimate.columns}["document"] == longest
    frozen = freeze_index(static_model, query="linear")
    layer = sum(parameter.nbytes for parameter in frozen.parameters() if parameter.requires_grad)
    assert estimate_memory(frozen, arguments(), data=data).gradients == layer == 16 * 16 * 4
    assert arguments_for_gpu("8GB", model=static_model, data=data, output_dir="out", use_cpu=True).bf16


@pytest.mark.parametrize("query", ["linear", "lora", "route"])
def test_a_model_with_a_frozen_index_needs_the_memory_of_its_query_side(tiny_model, data, arguments, query):
    whole = estimate_memory(tiny_model, arguments(), data=data)
    frozen = freeze_index(tiny_model, query=query)
    trained = sum(parameter.nbytes for parameter in frozen.parameters() if parameter.requires_grad)
    estimate = estimate_memory(frozen, arguments(), data=data)
    assert estimate.gradients == trained
    assert 0 <= estimate.activations < whole.activations + whole.gradients


@pytest.mark.slow
@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [None, True])
def test_activations_of_a_real_model_are_those_of_a_real_step(bf16, gradient_checkpointing, lora, accumulating):
    model = load_model("minilm", device="cpu", lora=lora)
    options = {"bf16": bf16, "gradient_checkpointing": gradient_checkpointing, "accumulating": accumulating}
    columns = (Column("query", 8, 16), Column("document", 8, 128))
    measured = measured_activations(model, columns, **options)
    estimate = peak_activations(model, columns, fused_attention=False, **options)
    assert measured * 0.95 <= estimate <= measured * 1.05


@pytest.mark.parametrize("one_pass", [False, True])
def test_the_gradient_of_embeddings_that_two_modules_share_is_there_once(tiny_model, one_pass):
    columns = (Column("query", 1, 2), Column("document", 1, 2))
    options = {"accumulating": True, "fused_attention": False, "one_pass": one_pass}
    words = tiny_model[0].model.embeddings.word_embeddings = nn.Embedding(5_000, 32)
    alone = peak_activations(tiny_model, columns, **options)
    tiny_model[0].second = nn.Embedding(5_000, 32)
    tiny_model[0].second.weight = words.weight
    assert peak_activations(tiny_model, columns, **options) == alone


def test_weights_gradients_and_moments_are_counted_by_what_is_trained(tiny_model, data, arguments):
    weights = sum(parameter.nbytes for parameter in tiny_model.parameters())
    estimate = estimate_memory(tiny_model, arguments(), data=data)
    assert estimate.weights == weights + sum(buffer.nbytes for buffer in tiny_model.buffers())
    assert (estimate.gradients, estimate.optimizer) == (weights, 2 * weights)
    assert estimate.total == estimate.weights + estimate.gradients + estimate.optimizer + estimate.activations
    adapted = load_model(copy.deepcopy(tiny_model), lora=LoraConfig(r=2, target_modules=["query"]))
    trained = sum(parameter.nbytes for parameter in adapted.parameters() if parameter.requires_grad)
    small = estimate_memory(adapted, arguments(optim="adamw_bnb_8bit"), data=data)
    assert (small.gradients, small.optimizer) == (trained, trained // 2)


@pytest.mark.parametrize("frozen_layers", [0.0, 0.5])
def test_the_moments_are_those_of_the_trainers_optimiser(deep_model, data, arguments, frozen_layers):
    tiny_model = deep_model
    args = arguments(
        frozen_layers=frozen_layers, max_steps=1, save_strategy="no", eval_strategy="no", load_best_model_at_end=False
    )
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    trainer.train()
    held = sum(v.nbytes for state in trainer.optimizer.state.values() for v in state.values() if v.ndim)
    # The pooler is never used, so its moments are never made.
    pooler = sum(2 * parameter.nbytes for name, parameter in tiny_model.named_parameters() if "pooler" in name)
    assert held + pooler == estimate_memory(tiny_model, args, data=data).optimizer


@pytest.mark.parametrize(
    ("loss", "roles"),
    [
        ("in-batch", ["query", "document"]),
        ("triplet", ["document", "query", "query"]),
        ("cosine", ["document", "query"]),
    ],
)
def test_the_batch_is_the_losses_with_the_longest_texts_as_the_model_reads_them(tiny_model, arguments, loss, roles):
    data = RetrievalDataset.from_pairs(
        [("open " * 100, ["a", "how to open"]), ("valve", ["b"])], test_size=0, dev_size=0
    )
    tiny_model.prompts = {"query": "the ", "document": ""}
    columns = estimate_memory(tiny_model, arguments(loss=loss, per_device_train_batch_size=7), data=data).columns
    lengths = {"query": 6, "document": 64}  # [CLS] the how to open [SEP]; cut at the 64 tokens that the model reads
    assert [(column.role, column.num_tokens) for column in columns] == [(role, lengths[role]) for role in roles]
    questions = 3 if loss == "in-batch" else 7  # seven chunks with all their questions, or seven rows
    assert {column.num_rows for column in columns if column.role == "query"} == {questions}


@pytest.mark.parametrize("loss", ["triplet", "cosine"])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 16, 24])
def test_no_batch_has_more_chunks_than_was_estimated_and_some_has_nearly_as_many(tiny_model, arguments, loss, num_rows):
    texts = [(f"valve {i}", [f"{i} open {j}" for j in range(2 + i % 2)]) for i in range(12)]
    data = RetrievalDataset.from_pairs(texts, test_size=0, dev_size=0)
    args = arguments(loss=loss, per_device_train_batch_size=num_rows, num_negatives=2)
    columns = estimate_memory(tiny_model, args, data=data).columns
    place = next(i for i, column in enumerate(columns) if column.role == "document")
    loader = EmbeddingTrainer(tiny_model, args, data=data).get_train_dataloader()
    found = set()
    for epoch in range(20):
        loader.set_epoch(epoch)
        found |= {len(batch["text_rows"][:, place].unique()) for batch in loader}
    estimated = columns[place].num_rows
    assert max(found) <= estimated
    assert max(found) >= estimated / 2


def test_no_batch_of_whole_chunks_has_more_texts_than_was_estimated(tiny_model, arguments):
    texts = [(f"valve {i}", [f"{i} open {j}" for j in range(1 + i)]) for i in range(7)]
    data = RetrievalDataset.from_pairs(texts, test_size=0, dev_size=0)
    args = arguments(per_device_train_batch_size=3)
    columns = {column.role: column.num_rows for column in estimate_memory(tiny_model, args, data=data).columns}
    assert columns == {"query": 3 + 3 + 3, "document": 3}, "a chunk with more than three questions is cut into parts"
    loader = EmbeddingTrainer(tiny_model, args, data=data).get_train_dataloader()
    for epoch in range(10):
        loader.set_epoch(epoch)
        for batch in loader:
            questions, chunks = (len(column.unique()) for column in batch["text_rows"].T)
            assert questions <= columns["query"]
            assert chunks <= columns["document"]


def test_on_a_cpu_a_large_batch_goes_through_the_model_in_parts(tiny_model, arguments):
    columns = (Column("query", 6000, 10), Column("document", 1500, 64), Column("query", 100, 10))
    limit = tokens_per_pass(tiny_model, "cpu")
    assert limit == 2**17
    parts = _passes(tiny_model, arguments(), columns, "cpu")
    assert parts == columns, "each fits"
    assert _passes(tiny_model, arguments(), columns, "cuda") is None
    assert _passes(tiny_model, arguments(encode_once=False), columns, "cuda") == columns
    assert _passes(tiny_model, arguments(), columns[:1], "cpu") is None
    assert _passes(tiny_model, arguments(mini_batch_num_tokens=100), columns, "cpu") is None
    larger = (Column("document", 5000, 64), Column("query", 7, 3))
    sizes = [2048, 2048, 904]
    assert _passes(tiny_model, arguments(), larger, "cpu") == (*(Column("document", n, 64) for n in sizes), larger[1])


def test_what_saves_memory_is_seen_to(tiny_model, data, arguments):
    def activations(device="cpu", **options):
        return estimate_memory(tiny_model, arguments(**options), data=data, device=device).activations

    plain = activations()
    assert activations(per_device_train_batch_size=2) < plain
    assert activations(gradient_checkpointing=True) < plain
    assert activations(dropout=0.0) < plain
    assert activations(bf16=True) < plain
    assert activations(frozen_layers=0.5) < plain
    assert activations(device="cuda") < plain, "attention with dropout is fused there"


def test_estimating_changes_nothing_and_takes_a_model_without_weights(tiny_model, data, arguments):
    before = {name: parameter.clone() for name, parameter in tiny_model.named_parameters()}
    estimate = estimate_memory(tiny_model, arguments(gradient_checkpointing=True, dropout=0.0), data=data)
    assert all(torch.equal(before[name], parameter) for name, parameter in tiny_model.named_parameters())
    assert not any(parameter.grad is not None for parameter in tiny_model.parameters())
    assert not tiny_model[0].model.is_gradient_checkpointing
    assert {m.p for m in tiny_model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    empty = copy.deepcopy(tiny_model).to("meta")
    args = arguments(gradient_checkpointing=True, dropout=0.0)
    assert estimate_memory(empty, args, data=data, device="cpu") == estimate


def test_the_table_has_a_row_for_each_part(tiny_model, data, arguments):
    lines = str(estimate_memory(tiny_model, arguments(), data=data)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "total",
        "batch:",
    ]


# Settings that fit


def total_of(model, data, **options):
    args = TuningArguments("out", bf16=True, use_cpu=True, **options)
    return estimate_memory(model, args, data=data, device="cuda").total


TUNED = ("gradient_checkpointing", "optim", "mini_batch_num_tokens", "per_device_train_batch_size")
TUNED += ("gradient_accumulation_steps",)


def chosen_for(num_bytes, model, data, **settings):
    """What is chosen for a GPU that has so many bytes left, without what is given and bf16."""
    given = {"output_dir": "out", "use_cpu": True} | settings
    memory = f"{(num_bytes / 2**30 + 1) / 0.92:.12f}GB"
    chosen = arguments_for_gpu(memory, model=model, data=data, **given)
    default = TuningArguments(**given)
    assert chosen.bf16
    return {name: getattr(chosen, name) for name in TUNED if getattr(chosen, name) != getattr(default, name)}


CHECKPOINTED = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def long_data():
    """Batches of more tokens than the smallest piece."""
    texts = [(f"valve {i} " + "open the " * 40, [f"open {i}"]) for i in range(40)]
    return RetrievalDataset.from_pairs(texts, test_size=0, dev_size=0)


@pytest.fixture
def deep_model(tiny_model):
    """One in which checkpointing saves something."""
    config = copy.deepcopy(tiny_model[0].model.config)
    config.num_hidden_layers = 4
    tiny_model[0].model = type(tiny_model[0].model)(config)
    return tiny_model


@pytest.mark.parametrize("loss", ["in-batch", "triplet"])
def test_what_costs_least_comes_first(deep_model, long_data, loss):
    plain, checkpointed = (
        total_of(deep_model, long_data, loss=loss, gradient_checkpointing=on) for on in (False, True)
    )
    assert checkpointed < plain
    assert chosen_for(plain * 1.001, deep_model, long_data, loss=loss) == {}
    assert chosen_for(plain * 0.999, deep_model, long_data, loss=loss) == CHECKPOINTED
    assert chosen_for(checkpointed * 1.001, deep_model, long_data, loss=loss) == CHECKPOINTED


def test_a_batch_that_holds_the_negatives_stays_whole_down_to_the_smallest_gpu(deep_model, long_data):
    piece = total_of(deep_model, long_data, mini_batch_num_tokens=1024, **CHECKPOINTED)
    assert chosen_for(piece * 1.001, deep_model, long_data) == CHECKPOINTED | {"mini_batch_num_tokens": 1024}


def test_a_batch_of_rows_that_do_not_see_each_other_is_halved(deep_model, long_data):
    halves = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4}
    half = total_of(deep_model, long_data, loss="triplet", **CHECKPOINTED, **halves)
    chosen = chosen_for(half * 1.001, deep_model, long_data, loss="triplet")
    assert chosen == CHECKPOINTED | halves


def test_a_batch_of_ones_own_is_kept_for_every_loss(deep_model, long_data):
    batch = {"per_device_train_batch_size": 160, "loss": "triplet"}
    piece = total_of(deep_model, long_data, mini_batch_num_tokens=1024, **batch, **CHECKPOINTED)
    chosen = chosen_for(piece * 1.001, deep_model, long_data, **batch)
    assert chosen == CHECKPOINTED | {"mini_batch_num_tokens": 1024}
    with pytest.raises(ValueError, match="does not fit"):
        chosen_for(piece * 0.999, deep_model, long_data, **batch)


def test_a_loss_that_there_is_not_is_named(tiny_model, data):
    with pytest.raises(ValueError, match="loss='margin' is not one of"):
        arguments_for_gpu("8GB", model=tiny_model, data=data, output_dir="out", loss="margin")


def test_what_does_not_fit_is_refused_with_what_it_takes(tiny_model, data):
    with pytest.raises(ValueError, match=r"does not fit into 1GB(.|\n)*total(.|\n)*lora=True"):
        arguments_for_gpu("1GB", model=tiny_model, data=data, output_dir="out", use_cpu=True)
    with pytest.raises(ValueError, match="memory='big' is not a size"):
        arguments_for_gpu("big", model=tiny_model, data=data)


def test_settings_of_ones_own_are_kept(tiny_model, data):
    args = arguments_for_gpu(
        "8GB", model=tiny_model, data=data, output_dir="out", use_cpu=True, bf16=False, num_train_epochs=7
    )
    assert (args.bf16, args.num_train_epochs, args.output_dir) == (False, 7, "out")


# Out of memory


def test_running_out_of_memory_names_the_arguments_to_change_in_order(tiny_model, data, arguments):
    trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=1, eval_on_start=False), data=data)

    def allocate_too_much(*args):
        torch.empty(2**60, dtype=torch.uint8)

    tiny_model.register_forward_hook(allocate_too_much)
    with pytest.raises(torch.OutOfMemoryError, match=r"can't allocate memory(.|\n)*in this order") as caught:
        trainer.train()
    assert isinstance(caught.value.__cause__, RuntimeError)
    message = str(caught.value)
    order = [message.index(word) for word in ("bf16", "gradient_checkpointing", "lora", "batch_size")]
    assert order == sorted(order)


def test_another_error_of_the_model_is_left_as_it_is(tiny_model, data, arguments):
    def fail(*args):
        raise RuntimeError("something else")

    trainer = EmbeddingTrainer(tiny_model, arguments(eval_on_start=False), data=data)
    tiny_model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        trainer.train()


def test_cached_gradients_need_the_memory_of_a_part(tiny_model, data, arguments):
    whole = estimate_memory(tiny_model, arguments(group_rows=False, per_device_train_batch_size=64), data=data)
    (part,) = estimate_memory(
        tiny_model, arguments(group_rows=False, per_device_train_batch_size=64, mini_batch_num_tokens=100), data=data
    ).columns
    assert part.num_tokens == max(column.num_tokens for column in whole.columns)
    assert part.num_rows == 100 // part.num_tokens
    cached = estimate_memory(
        tiny_model, arguments(group_rows=False, per_device_train_batch_size=64, mini_batch_num_tokens=100), data=data
    )
    assert cached.activations < whole.activations / 4
