"""A loss or a gradient that is not finite is found at its step, also if it is read later."""

from __future__ import annotations

import pytest
import torch

from embedtune.training.resilience.finite import FiniteGuard

BAD = [float("nan"), float("inf"), -float("inf")]


def step(guard, number, *losses, norm=1.0):
    for loss in losses or (1.0,):
        guard.add_loss(torch.tensor(loss))
    guard.check(number, torch.tensor(norm))


@pytest.mark.parametrize("bad", BAD)
def test_a_loss_that_is_not_finite_stops_at_once(bad):
    guard = FiniteGuard(deferred=False, last_checkpoint="out/checkpoint-2")
    step(guard, 1)
    with pytest.raises(
        FloatingPointError, match=rf"at step 2: the loss is {bad:g} .*last good checkpoint: out/checkpoint-2"
    ):
        step(guard, 2, bad)


@pytest.mark.parametrize("bad", BAD)
def test_a_gradient_that_is_not_finite_stops_at_once(bad):
    with pytest.raises(FloatingPointError, match=rf"gradient norm {bad:g}.*none yet"):
        step(FiniteGuard(deferred=False), 1, norm=bad)


def test_one_bad_part_of_an_accumulated_batch_is_enough():
    with pytest.raises(FloatingPointError, match="at step 1:"):
        step(FiniteGuard(deferred=False), 1, 0.5, float("nan"), 0.5)


def test_what_is_read_later_is_named_by_its_own_step():
    guard = FiniteGuard(deferred=True)
    step(guard, 1)
    step(guard, 2, float("nan"))
    with pytest.raises(FloatingPointError, match="at step 2:"):
        step(guard, 3)


def test_what_has_not_been_read_is_read_before_a_checkpoint():
    guard = FiniteGuard(deferred=True)
    step(guard, 1, float("inf"))
    with pytest.raises(FloatingPointError, match="at step 1:"):
        guard.flush()
    guard.flush()


def test_the_infinite_gradient_of_a_scaled_loss_is_not_an_error():
    guard = FiniteGuard(deferred=False, check_gradients=False)
    step(guard, 1, norm=float("inf"))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        step(guard, 2, float("nan"))


@pytest.mark.gpu
def test_on_a_gpu_the_numbers_arrive_in_the_background():
    guard = FiniteGuard(deferred=True)
    guard.add_loss(torch.tensor(float("nan"), device="cuda"))
    guard.check(5, torch.tensor(1.0, device="cuda"))
    with pytest.raises(FloatingPointError, match="at step 5:"):
        guard.flush()
