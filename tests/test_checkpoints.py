"""Which checkpoints count as complete, which is chosen, and which are deleted."""

from __future__ import annotations

import json

import pytest

from embedtune import EmbeddingTrainer, RetrievalDataset, TuningArguments
from embedtune.training.resilience.checkpoints import (
    MARKER_NAME,
    complete_checkpoints,
    fault_of,
    put_back,
    resumable,
    rotate,
    seal,
    written_whole,
)


@pytest.fixture
def run(tmp_path):
    """A folder, and a function that writes a checkpoint into it."""

    def write(step, *, sealed=True, optimizer=True):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes([step % 256]) * 100)
        (folder / "1_Pooling" / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text("{}")
        if optimizer:
            (folder / "optimizer.pt").write_bytes(b"o" * 50)
        if sealed:
            seal(folder)
        return folder

    write.folder = tmp_path
    return write


def trainer(model, folder, **options):
    pairs = [(f"check the {thing}", [f"where is the {thing}"]) for thing in ("pump", "valve", "door", "lamp", "roof")]
    data = RetrievalDataset.from_pairs(pairs, test_size=0.2, dev_size=0.2)
    settings = {"max_steps": 2, "eval_strategy": "no", "load_best_model_at_end": False, "use_cpu": True} | options
    return EmbeddingTrainer(
        model, TuningArguments(str(folder), disable_tqdm=True, report_to="none", **settings), data=data
    )


def names(folders):
    return [folder.name for folder in folders]


def test_a_sealed_checkpoint_has_no_fault_and_lists_every_file(run):
    folder = run(1)
    assert fault_of(folder) is None
    sizes = json.loads((folder / MARKER_NAME).read_text())["sizes"]
    assert sorted(sizes) == ["1_Pooling/config.json", "model.safetensors", "optimizer.pt", "trainer_state.json"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"o"), "has 1 bytes instead of 50"),
        (lambda folder: (folder / MARKER_NAME).unlink(), "which is written last"),
        (lambda folder: (folder / MARKER_NAME).write_text('{"sizes": {'), "no readable"),
    ],
)
def test_each_kind_of_damage_is_named_and_a_damaged_checkpoint_is_refused(run, damage, fault):
    run(1)
    damage(run(2))
    with pytest.raises(
        ValueError, match=rf"checkpoint-2' is not complete: .*{fault}.*Complete checkpoints there: checkpoint-1"
    ):
        resumable(str(run.folder / "checkpoint-2"), run.folder)


def test_the_newest_complete_checkpoint_is_chosen_by_time_and_not_by_step(run):
    run(100)
    newest = run(7)
    run(8, sealed=False)
    assert resumable(True, run.folder) == newest
    assert names(complete_checkpoints(run.folder)) == ["checkpoint-7", "checkpoint-100"]


def test_where_there_is_nothing_to_resume_from_that_is_said(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint.*trainer\.train\(\)"):
        resumable(True, run.folder)
    run(3)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint-4.*does not exist.*Complete checkpoints there: checkpoint-3"
    ):
        resumable(str(tmp_path / "checkpoint-4"), run.folder)


def test_a_checkpoint_without_an_optimiser_is_refused(run):
    folder = run(1, optimizer=False)
    with pytest.raises(ValueError, match="save_only_model"):
        resumable(str(folder), run.folder)


def test_what_fails_half_way_leaves_what_stood_there(run):
    folder = run(1)
    before = (folder / "model.safetensors").read_bytes()

    @written_whole(folder)
    def write_half():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert (folder / "model.safetensors").read_bytes() == before
    assert fault_of(folder) is None
    assert names(run.folder.iterdir()) == ["checkpoint-1"]


def test_a_checkpoint_of_an_earlier_run_is_replaced_and_not_mixed_with(run):
    (run(1) / "left-over.bin").write_bytes(b"old")
    with written_whole(run.folder / "checkpoint-1"):
        run(1, sealed=False)
    assert not (run.folder / "checkpoint-1" / "left-over.bin").exists()
    assert fault_of(run.folder / "checkpoint-1") is None
    assert names(run.folder.iterdir()) == ["checkpoint-1"]


@pytest.mark.parametrize("left", ["nothing", "half", "whole"])
def test_what_a_killed_run_had_set_aside_stands_again_unless_the_new_checkpoint_is_complete(run, left):
    (run(1) / "model.safetensors").write_bytes(b"old")
    seal(run.folder / "checkpoint-1")
    (run.folder / "checkpoint-1").rename(run.folder / ".checkpoint-1.replaced")
    if left != "nothing":
        run(1, sealed=left == "whole")
    put_back(run.folder)
    assert names(run.folder.iterdir()) == ["checkpoint-1"]
    assert fault_of(run.folder / "checkpoint-1") is None
    assert ((run.folder / "checkpoint-1" / "model.safetensors").read_bytes() == b"old") == (left != "whole")


def test_a_run_removes_what_a_killed_one_set_aside(tiny_model, tmp_path):
    leftover = tmp_path / ".checkpoint-9.replaced"
    leftover.mkdir()
    trainer(tiny_model, tmp_path, save_strategy="no").train()
    assert not leftover.exists()


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_an_output_dir_that_cannot_be_made_is_named_with_a_remedy(tiny_model, tmp_path, save_strategy):
    (tmp_path / "file").write_text("1")
    with pytest.raises(OSError, match=r"Cannot be written \(.*\)\. Choose another output_dir: '.*file/run'"):
        trainer(tiny_model, tmp_path / "file" / "run", save_strategy=save_strategy)


@pytest.mark.parametrize("act", ["train", "evaluate"])
def test_an_evaluation_that_cannot_be_written_is_named_with_a_remedy(tiny_model, tmp_path, act):
    (tmp_path / "eval").write_text("where the stock trainer writes its tables")
    here = trainer(tiny_model, tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="no")
    with pytest.raises(OSError, match=r"Cannot be written \([^()]*\)\. Choose another output_dir: '.*eval'$"):
        getattr(here, act)()


def test_rotation_keeps_the_new_and_the_best_and_deletes_incomplete_ones_first(run):
    best, old, kept = run(1), run(2), run(3)
    incomplete, new = run(99, sealed=False), run(4)
    rotate(run.folder, keep=new, best=str(best), limit=3)
    assert best.exists()
    assert new.exists()
    assert kept.exists()
    assert not old.exists()
    assert not incomplete.exists()


@pytest.mark.parametrize(("limit", "left"), [(None, 3), (0, 3), (1, 2), (2, 2), (3, 3), (9, 3)])
def test_rotation_deletes_nothing_below_the_limit_and_never_the_best(run, limit, left):
    best, _, new = run(1), run(2), run(3)
    rotate(run.folder, keep=new, best=str(best), limit=limit)
    remaining = names(run.folder.iterdir())
    assert len(remaining) == left
    assert {best.name, new.name} <= set(remaining)
