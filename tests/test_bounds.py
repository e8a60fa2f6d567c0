import numpy as np
import pytest

from embedtune.bounds import finite, share, whole

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [True, False, 1.0, 2.5, NAN, INF, "4", None, np.bool_(True), np.float64(3)])
def test_what_is_no_whole_number_is_a_type_error_that_shows_it(value):
    with pytest.raises(TypeError, match=r"^batch_size=.* must be a whole number, at least 1\.$"):
        whole("batch_size", value)


@pytest.mark.parametrize(("value", "limits"), [(0, {}), (-1, {"at_least": 0}), (10**9, {"at_most": 100})])
def test_a_whole_number_out_of_bounds_is_a_value_error_that_shows_it(value, limits):
    with pytest.raises(ValueError, match=f"^k={value} must be at least"):
        whole("k", value, **limits)


def test_bounds_themselves_are_allowed():
    assert [whole("k", value, at_least=0, at_most=2) for value in (0, 2)] == [0, 2]
    assert [share("dropout", value) for value in (0, 1)] == [0.0, 1.0]
    assert finite("price", 0, at_least=0) == 0.0


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), 3])
def test_integers_of_numpy_become_those_of_python(value):
    assert type(whole("k", value)) is int


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0, -1e-9])
def test_a_number_that_is_not_finite_or_not_above_its_bound_is_a_value_error(value):
    with pytest.raises(ValueError, match=r"must be a finite number above 0\.$"):
        finite("learning_rate", value, above=0)


@pytest.mark.parametrize("value", ["2e-5", None, True, [1.0]])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^x=.* must be a finite number\.$"):
        finite("x", value)
    with pytest.raises(TypeError, match=r"^x=.* must be a number, from 0 to 1\.$"):
        share("x", value)


@pytest.mark.parametrize(("value", "below_one"), [(NAN, False), (-0.1, False), (1.1, False), (INF, False), (1, True)])
def test_a_share_out_of_its_range_is_a_value_error(value, below_one):
    with pytest.raises(ValueError, match=r"^x="):
        share("x", value, below_one=below_one)
