import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_utils.errors import MergeError
from boom_utils.merging.elementwise import ELEMENTWISE
from boom_utils.merging.gram import (
    GramTable,
    TensorGram,
    cosines,
    distances,
    load_grams,
    norms,
    save_grams,
    tensor_gram,
    whole_model,
)
from boom_utils.merging.methods import METHODS, Settings, linear, linear_norm_matched, multislerp, used_weights
from boom_utils.merging.recipe import METHOD_NAMES

BASES = [False, True]
WEIGHTED = ["linear", "multislerp", "linear_norm_matched"]


def gram_of(models, base=None) -> TensorGram:
    """The Gram matrix of (M, N) models, and a base of (N,)."""
    rows = [*([] if base is None else [base]), *models]
    return tensor_gram(
        "t", [torch.as_tensor(row) for row in rows], base is not None, [str(n) for n in range(len(rows))]
    )


def apply(method, models, weights, base=None, **options):
    """The merged vector (N,), combined from coefficients."""
    models = np.asarray(models, dtype=np.float64)
    made_of = METHODS[method](gram_of(models, base), Settings(tuple(weights), **options))
    return made_of.members @ models + (0 if base is None else made_of.base * np.asarray(base))


def tangent_multislerp(models, weights, base=None, eps=1e-8):
    """Multi-SLERP as it is described, with all its steps: mean on the sphere, tangent space, and back."""
    vectors = np.asarray(models, dtype=np.float64) - (0 if base is None else base)
    weights = np.asarray(weights) / np.sum(weights)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / (lengths[:, None] + eps)
    mean = weights @ units
    mean = mean / np.linalg.norm(mean)
    tangents = units - (units @ mean)[:, None] * mean
    tangent = weights @ tangents
    angle = np.linalg.norm(tangent)
    point = mean if angle < eps else np.cos(angle) * mean + np.sin(angle) * tangent / angle
    return (weights @ lengths) * point + (0 if base is None else base)


def full_karcher(models, steps=10, tol=1e-5):
    """The Riemannian mean of directions with equal shares, computed on the vectors themselves."""
    lengths = np.linalg.norm(models, axis=1)
    units = models / lengths[:, None]
    point = units.mean(axis=0)
    point = point / np.linalg.norm(point)
    for _ in range(steps):
        angles = 2 * np.arcsin(np.linalg.norm(units - point, axis=1) / 2)
        turns = np.where(angles > 0, angles / np.where(angles > 0, np.sin(angles), 1), 0)
        step = np.mean(turns[:, None] * (units - np.cos(angles)[:, None] * point), axis=0)
        size = np.linalg.norm(step)
        if size < tol:
            break
        point = np.cos(size) * point + np.sin(size) * step / size
        point = point / np.linalg.norm(point)
    return lengths.mean() * point


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@st.composite
def merges(draw, smallest=2):
    """Models (M, N), weights (M,) and a base (N,), from unrelated vectors to siblings."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, size = draw(st.integers(smallest, 6)), draw(st.integers(8, 60))
    spread = draw(st.sampled_from([1.0, 0.1, 0.003]))
    base = generator.normal(size=size)
    models = base + spread * (generator.normal(size=(count, size)) + generator.normal(size=size))
    return models, generator.uniform(0.1, 1.0, size=count), base


@pytest.mark.promise(24)
@pytest.mark.parametrize("with_base", BASES)
@given(merge=merges())
@settings(max_examples=60, deadline=None)
def test_multislerp_is_the_algorithm_with_its_tangent_step(with_base, merge):
    models, weights, base = merge
    base = base if with_base else None
    found = apply("multislerp", models, weights, base)
    # The tangent step is zero but for rounding, and the reference turns by that rounding.
    assert relative(found, tangent_multislerp(models, weights, base)) < 3e-8


def test_every_method_a_recipe_may_name_is_there_and_no_other():
    assert set(METHOD_NAMES) == {*METHODS, *ELEMENTWISE}
    assert not {*METHODS} & {*ELEMENTWISE}


@pytest.mark.promise(24)
@given(merge=merges())
@settings(max_examples=40, deadline=None)
def test_linear_is_the_weighted_mean_of_numpy(merge):
    models, weights, _ = merge
    assert np.allclose(apply("linear", models, weights), np.average(models, axis=0, weights=weights), rtol=1e-12)
    assert np.allclose(apply("linear", models, weights, normalized=False), weights @ models, rtol=1e-12)


@pytest.mark.promise(24)
@pytest.mark.parametrize("method", [*WEIGHTED, "karcher"])
@pytest.mark.parametrize("with_base", BASES)
@given(merge=merges(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_models_and_the_scale_of_the_weights_mean_nothing(method, with_base, merge, seed):
    models, weights, base = merge
    base = base if with_base else None
    order = np.random.default_rng(seed).permutation(len(models))
    expected = apply(method, models, weights, base)
    assert relative(apply(method, models[order], weights[order], base), expected) < 1e-11
    assert relative(apply(method, models, 7.5 * weights, base), expected) < 1e-11


@pytest.mark.promise(24)
@pytest.mark.parametrize("method", [*WEIGHTED, "karcher", "model_stock"])
@pytest.mark.parametrize("with_base", BASES)
@given(merge=merges())
@settings(max_examples=25, deadline=None)
def test_equal_models_merge_to_that_model(method, with_base, merge):
    models, weights, base = merge
    same = np.tile(models[0], (len(models), 1))
    with_base = with_base or method == "model_stock"
    assert relative(apply(method, same, weights, base if with_base else None), models[0]) < 1e-12


@pytest.mark.promise(24)
@pytest.mark.parametrize("with_base", BASES)
@given(merge=merges())
@settings(max_examples=25, deadline=None)
def test_the_result_is_as_long_as_the_weighted_mean_of_lengths(with_base, merge):
    models, weights, base = merge
    base = base if with_base else np.zeros_like(base)
    expected = np.average(np.linalg.norm(models - base, axis=1), weights=weights)
    for method in ("multislerp", "linear_norm_matched"):
        merged = apply(method, models, weights, base if with_base else None)
        assert np.isclose(np.linalg.norm(merged - base), expected, rtol=1e-9)


@given(merge=merges())
@settings(max_examples=25, deadline=None)
def test_the_norm_matched_control_points_where_the_weighted_mean_points(merge):
    models, weights, base = merge
    mean = np.average(models, axis=0, weights=weights) - base
    update = apply("linear_norm_matched", models, weights, base) - base
    assert np.isclose(mean @ update, np.linalg.norm(mean) * np.linalg.norm(update), rtol=1e-9)


def test_weights_that_are_not_normalised_multiply_the_length():
    models, weights = np.eye(5)[:3] + 0.1, (0.2, 0.4, 0.9)
    scaled = apply("multislerp", models, weights, normalized=False)
    assert np.allclose(scaled, 1.5 * apply("multislerp", models, weights))


@pytest.mark.parametrize("with_base", BASES)
def test_a_model_of_weight_zero_is_absent(with_base):
    generator = np.random.default_rng(1)
    models, base = generator.normal(size=(3, 20)), generator.normal(size=20)
    base = base if with_base else None
    for method in WEIGHTED:
        found = apply(method, models, (0.3, 0.0, 0.7), base)
        assert np.allclose(found, apply(method, models[[0, 2]], (0.3, 0.7), base), rtol=1e-12)


@pytest.mark.promise(22)
def test_a_zero_tensor_adds_nothing_to_direction_and_length():
    generator = np.random.default_rng(2)
    models = generator.normal(size=(3, 20))
    for zero in range(3):  # the pivot, and others
        with_zero = models.copy()
        with_zero[zero] = 0
        others = [n for n in range(3) if n != zero]
        expected = 2 / 3 * apply("multislerp", models[others], (1, 1))
        assert np.allclose(apply("multislerp", with_zero, (1, 1, 1)), expected, rtol=1e-12)


@pytest.mark.promise(24)
@given(merge=merges())
@settings(max_examples=60, deadline=None)
def test_the_karcher_mean_of_inner_products_is_that_of_the_vectors(merge):
    models, _, _ = merge
    assert relative(apply("karcher", models, [1] * len(models)), full_karcher(models)) < 1e-9


@pytest.mark.promise(24)
@given(merge=merges(), scale=st.floats(0.1, 2.0))
@settings(max_examples=40, deadline=None)
def test_task_arithmetic_adds_scaled_task_vectors(merge, scale):
    models, weights, base = merge
    found = apply("task_arithmetic", models, weights, base, normalized=False, scale=scale)
    assert np.allclose(found, base + scale * weights @ (models - base), rtol=1e-10, atol=1e-12)
    found = apply("task_arithmetic", models, weights, base, scale=scale)
    assert np.allclose(found, base + scale * np.average(models - base, axis=0, weights=weights), atol=1e-12)


@pytest.mark.promise(24)
@given(merge=merges(), t=st.floats(0, 1), first=st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_slerp_goes_along_the_arc_and_along_the_line_between_near_models(merge, t, first):
    pair = merge[0][:2]
    one, two = pair[first], pair[1 - first]
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    angle = np.arccos(np.clip(cosine, -1, 1))
    expected = (1 - t) * one + t * two
    if abs(cosine) <= 0.9995:
        expected = (np.sin((1 - t) * angle) * one + np.sin(t * angle) * two) / np.sin(angle)
    assert relative(apply("slerp", pair, (1, 1), t=t, first=first), expected) < 1e-9


@pytest.mark.promise(24)
@pytest.mark.parametrize("with_base", BASES)
@given(merge=merges())
@settings(max_examples=40, deadline=None)
def test_nuslerp_is_slerp_at_the_share_of_the_second_weight(with_base, merge):
    models, weights, base = merge
    pair, (a, b) = models[:2], weights[:2]
    base = base if with_base else None
    moved = pair - (base if with_base else 0)
    one, two = moved
    angle = np.arccos(np.clip(one @ two / np.linalg.norm(one) / np.linalg.norm(two), -1, 1))
    share = b / (a + b)
    arc = (np.sin((1 - share) * angle) * one + np.sin(share * angle) * two) / np.sin(angle)
    expected = arc + (base if with_base else 0)
    assert relative(apply("nuslerp", pair, (a, b), base), expected) < 1e-6


@pytest.mark.promise(24)
@given(merge=merges())
@settings(max_examples=40, deadline=None)
def test_model_stock_moves_the_mean_by_the_angle_between_task_vectors(merge):
    models, weights, base = merge
    updates = models - base
    units = updates / np.linalg.norm(updates, axis=1)[:, None]
    pairs = np.triu_indices(len(models), 1)
    cosine = (units @ units.T)[pairs].mean()
    share = len(models) * cosine / (1 + (len(models) - 1) * cosine)
    expected = base + share * updates.mean(axis=0)
    assert relative(apply("model_stock", models, weights, base), expected) < 1e-8


@pytest.mark.promise(22)
def test_the_other_methods_say_what_becomes_of_tensors_without_direction():
    base = np.random.default_rng(7).normal(size=30)
    for method in ("karcher", "model_stock", "task_arithmetic"):
        settings_ = Settings((1.0, 1.0), normalized=False)
        assert np.allclose(apply(method, [base, base], (1, 1), base, normalized=False), base)
        made_of = METHODS[method](gram_of([base, base], base), settings_)
        assert made_of.note is None or "base's tensor" in made_of.note
    zero = np.zeros(30)
    assert np.allclose(apply("slerp", [zero, base], (1, 1), t=0.5), np.sin(np.pi / 4) * base)  # as mergekit
    assert np.allclose(apply("karcher", [zero, base, base], (1, 1, 1)), 2 / 3 * base)  # as mergekit
    with pytest.raises(MergeError, match="cancel"):
        apply("karcher", [base, -base, zero, base, -base], (1,) * 5)


@pytest.mark.parametrize("options", [{}, {"normalized": False}])
@pytest.mark.parametrize("with_base", BASES)
def test_a_single_model_is_returned_as_it_is_whatever_its_weight(with_base, options):
    base = np.ones(4) if with_base else None
    made_of = multislerp(gram_of(np.arange(4.0)[None], base), Settings((0.5,), **options))
    assert (made_of.base, made_of.members.tolist()) == (0.0, [1.0])


@pytest.mark.promise(22)
@pytest.mark.parametrize("method", ["multislerp", "linear_norm_matched"])
def test_two_opposite_models_are_merged_linearly_and_noted(method):
    vector = np.random.default_rng(3).normal(size=50)
    made_of = METHODS[method](gram_of([vector, -vector]), Settings((1.0, 1.0)))
    assert made_of.members.tolist() == [0.5, 0.5]
    assert "merged linearly" in made_of.note
    base = np.ones(50)
    assert np.allclose(apply(method, [base + vector, base - vector], (1, 1), base), base)


@pytest.mark.promise(22)
@pytest.mark.parametrize("method", ["multislerp", "linear_norm_matched"])
@pytest.mark.parametrize("weights", [(1, 1, 0), (1, 2, -3)])
def test_three_models_that_cancel_are_an_error_naming_the_tensor(method, weights):
    vector = np.random.default_rng(3).normal(size=50)
    models = [vector, -vector, 0 * vector] if weights[2] == 0 else [vector, vector, vector]
    with pytest.raises(MergeError, match=r"cancel(.|\n)*where: t"):
        METHODS[method](gram_of(models), Settings(weights, normalized=False))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", ["multislerp", "linear_norm_matched"])
def test_a_tensor_no_model_changed_is_that_of_the_base(method, count):
    base = np.random.default_rng(4).normal(size=50)
    made_of = METHODS[method](gram_of([base] * count, base), Settings((1.0,) * count))
    assert (made_of.base, made_of.members.tolist()) == (1.0, [0.0] * count)
    assert "base's tensor" in made_of.note


def test_a_tensor_that_is_zero_in_every_model_stays_zero_and_is_noted():
    made_of = multislerp(gram_of(np.zeros((3, 5))), Settings((1.0, 2.0, 3.0)))
    assert made_of.members.tolist() == [0.0] * 3
    assert "zero" in made_of.note


def test_weights_that_cancel_cannot_be_normalised():
    with pytest.raises(MergeError, match="sum to zero"):
        linear(gram_of(np.eye(3)), Settings((1, 1, -2)))
    assert used_weights(Settings((1, 3))).tolist() == [0.25, 0.75]


def test_a_mixture_that_almost_cancels_keeps_its_length():
    # x1 - x2 of siblings: the common part is a thousand times what is left.
    generator = np.random.default_rng(5)
    common = generator.normal(size=4000)
    models = common + 1e-3 * generator.normal(size=(2, 4000))
    settings_ = Settings((1.0, -0.9999), normalized=False)
    made_of = linear_norm_matched(gram_of(models), settings_)
    expected = np.array(settings_.weights) @ np.linalg.norm(models, axis=1)
    assert np.isclose(np.linalg.norm(made_of.members @ models), abs(expected), rtol=1e-9)
    length, _ = gram_of(models).length(np.array([1.0, -0.9999]))
    assert np.isclose(length, np.linalg.norm(models[0] - 0.9999 * models[1]), rtol=1e-10)


@pytest.mark.promise(24)
@pytest.mark.parametrize("with_base", BASES)
@given(merge=merges(smallest=1))
@settings(max_examples=25, deadline=None)
def test_inner_products_by_way_of_a_pivot_are_the_direct_ones(with_base, merge):
    models, _, base = merge
    gram = gram_of(models, base if with_base else None)
    assert np.allclose(gram.models, models @ models.T, rtol=1e-11, atol=1e-11)
    if with_base:
        updates = models - base
        assert np.allclose(gram.updates, updates @ updates.T, rtol=1e-12, atol=1e-14)
        assert gram.merged is not gram.models
    expected = np.linalg.norm(models[:, None] - models[None], axis=2)
    assert np.allclose(distances(gram), expected, rtol=1e-6, atol=1e-7)


def test_task_vectors_need_a_base():
    with pytest.raises(ValueError, match="need a base"):
        _ = gram_of(np.eye(2)).updates


def test_small_updates_keep_their_digits():
    # |x - base|^2 out of the products of whole tensors would be off by 1e-3 here.
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300_000, generator=generator)
    member = base * (1 + 1e-3 * torch.randn(300_000, generator=generator))
    exact = float((member.double() - base.double()).square().sum())
    gram = tensor_gram("t", [base, member], True, ["base", "a"])
    assert abs(gram.updates[0, 0] / exact - 1) < 1e-13
    assert abs(distances(tensor_gram("t", [base, member], False, ["a", "b"]))[0, 1] ** 2 / exact - 1) < 1e-13


@pytest.mark.promise(24)
def test_a_long_sum_does_not_drift_as_it_does_in_float32():
    tensor = torch.full((4_000_000,), 0.1).add_(torch.linspace(0, 0.01, 4_000_000))
    exact = float(np.linalg.norm(tensor.numpy().astype(np.float64)))
    one_by_one = float(np.cumsum(np.square(tensor.numpy()), dtype=np.float32)[-1]) ** 0.5
    found = norms(tensor_gram("t", [tensor, tensor], False, ["a", "b"]).models)
    assert abs(one_by_one / exact - 1) > 1e-4  # the trap: summed in float32, one after another
    assert np.abs(found / exact - 1).max() < 1e-13


@pytest.mark.promise(22)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("guilty", [0, 1, 2])
def test_a_value_that_is_not_finite_is_an_error_naming_model_and_tensor(value, guilty):
    tensors = [torch.ones(10) for _ in range(3)]
    tensors[guilty][3] = value
    with pytest.raises(MergeError, match=rf"some\.weight: NaN or infinity in m{guilty}\n"):
        tensor_gram("some.weight", tensors, True, ["m0", "m1", "m2"])


def test_values_whose_squares_overflow_are_not_called_nan():
    with pytest.raises(MergeError, match="too large"):
        gram_of(np.full((2, 3), 1e200))


def test_a_whole_model_is_the_sum_of_its_tensors():
    generator = np.random.default_rng(6)
    parts = [generator.normal(size=(4, size)) for size in (5, 9)]
    whole = whole_model([gram_of(part[1:], part[0]) for part in parts])
    joined = np.concatenate(parts, axis=1)
    updates = joined[1:] - joined[0]
    assert whole.size == 14
    assert np.allclose(whole.updates, updates @ updates.T)
    expected = updates @ updates.T / np.outer(*[np.linalg.norm(updates, axis=1)] * 2)
    assert np.allclose(cosines(whole.updates), expected)


def test_inner_products_survive_being_saved(tmp_path):
    tensors = tuple(
        TensorGram(f"t{n}", 7, True, np.cov(np.random.default_rng(n).normal(size=(3, 7)))) for n in range(2)
    )
    table = GramTable(("base", "a", "b"), ("1f", "2f", "3f"), True, tensors)
    save_grams(tmp_path / "one.npz", table)
    save_grams(tmp_path / "two.npz", table)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    saved = load_grams(tmp_path / "one.npz")
    assert (saved.models, saved.fingerprints, saved.has_base) == (table.models, table.fingerprints, True)
    for found, gram in zip(saved.tensors, tensors, strict=True):
        assert (found.name, found.size) == (gram.name, gram.size)
        assert np.array_equal(found.matrix, gram.matrix)
    for content in (b"not a zip", b"PK\x03\x04 a zip cut short"):
        (tmp_path / "three.npz").write_bytes(content)
        with pytest.raises(MergeError, match=r"three\.npz"):
            load_grams(tmp_path / "three.npz")


@pytest.mark.promise(24)
@given(merge=merges(smallest=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_family_is_seen_from_any_of_its_models(merge, data):
    models, _, base = merge
    rows = np.vstack([base, models])
    order = data.draw(st.permutations(range(len(rows))))
    with_base = data.draw(st.booleans())
    members, chosen = order[1:], order[0] if with_base else None
    raw = gram_of(rows[1:], rows[0]).matrix
    view = TensorGram("t", rows.shape[1], True, raw).view(members, chosen)
    direct = gram_of(rows[members], rows[chosen] if with_base else None)
    assert view.has_base == direct.has_base
    assert np.allclose(view.matrix, direct.matrix, rtol=1e-9, atol=1e-12)
