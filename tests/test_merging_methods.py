"""Merge methods as coefficients of inner products, against their definitions on whole vectors."""

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
    distances,
    load_grams,
    norms,
    save_grams,
    tensor_gram,
)
from boom_utils.merging.methods import METHODS, Settings, linear_norm_matched
from boom_utils.merging.recipe import METHOD_NAMES

WEIGHTED = ["linear", "multislerp", "linear_norm_matched"]
both = pytest.mark.parametrize("with_base", [False, True])


def gram_of(models, base=None) -> TensorGram:
    """The Gram matrix of (M, N) models, and a base of (N,)."""
    rows = [*([] if base is None else [base]), *models]
    return tensor_gram("t", rows, base is not None, [str(n) for n in range(len(rows))])


def apply(method, models, weights, base=None, **options):
    """The merged vector (N,), combined from coefficients."""
    models = np.asarray(models, dtype=np.float64)
    made_of = METHODS[method](gram_of(models, base), Settings(tuple(weights), **options))
    return made_of.members @ models + (0 if base is None else made_of.base * np.asarray(base))


def tangent_multislerp(vectors, weights, eps=1e-8):
    """Multi-SLERP as it is described, with all its steps: mean on the sphere, tangent space, and back."""
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / (lengths[:, None] + eps)
    mean = weights @ units
    mean = mean / np.linalg.norm(mean)
    tangent = weights @ (units - (units @ mean)[:, None] * mean)
    angle = np.linalg.norm(tangent)
    point = mean if angle < eps else np.cos(angle) * mean + np.sin(angle) * tangent / angle
    return (weights @ lengths) * point


def full_karcher(vectors, weights):
    """The Riemannian mean of directions with equal shares, computed on the vectors themselves."""
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / lengths[:, None]
    point = units.mean(axis=0)
    point = point / np.linalg.norm(point)
    for _ in range(10):
        angles = 2 * np.arcsin(np.linalg.norm(units - point, axis=1) / 2)
        turns = np.where(angles > 0, angles / np.where(angles > 0, np.sin(angles), 1), 0)
        step = np.mean(turns[:, None] * (units - np.cos(angles)[:, None] * point), axis=0)
        size = np.linalg.norm(step)
        if size < 1e-5:
            break
        point = np.cos(size) * point + np.sin(size) * step / size
        point = point / np.linalg.norm(point)
    return lengths.mean() * point


def arc(one, two, t, parallel=1.0):
    """Slerp by its textbook formula; along the line between near vectors."""
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    if abs(cosine) > parallel:
        return (1 - t) * one + t * two
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * two) / np.sin(angle)


def stock(vectors, weights):
    """The mean moved by the mean cosine of the task vectors."""
    units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    cosine = (units @ units.T)[np.triu_indices(len(vectors), 1)].mean()
    return len(vectors) * cosine / (1 + (len(vectors) - 1) * cosine) * vectors.mean(axis=0)


def matched(vectors, weights):
    """The weighted mean, as long as the weighted mean of lengths."""
    mean = weights @ vectors
    return weights @ np.linalg.norm(vectors, axis=1) * mean / np.linalg.norm(mean)


# Method -> its definition on task vectors (or models) and normalised weights, bases, most models, options, tolerance.
# The tangent step of Multi-SLERP is zero but for rounding, and the reference turns by that rounding.
REFERENCES = {
    "linear": (lambda v, w: w @ v, [False], 6, {}, 1e-12),
    "multislerp": (tangent_multislerp, [False, True], 6, {}, 3e-8),
    "linear_norm_matched": (matched, [False, True], 6, {}, 1e-9),
    "karcher": (full_karcher, [False], 6, {}, 1e-9),
    "task_arithmetic": (lambda v, w: 0.7 * (w @ v), [True], 6, {"scale": 0.7}, 1e-10),
    "slerp": (lambda v, w: arc(v[1], v[0], 0.3, 0.9995), [False], 2, {"t": 0.3, "first": 1}, 1e-9),
    "nuslerp": (lambda v, w: arc(v[0], v[1], w[1]), [False, True], 2, {}, 1e-6),
    "model_stock": (stock, [True], 6, {}, 1e-8),
}


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


def test_every_method_a_recipe_may_name_is_there_and_no_other():
    assert sorted(METHOD_NAMES) == sorted([*METHODS, *ELEMENTWISE])
    assert set(REFERENCES) == set(METHODS)


@pytest.mark.promise(24)
@pytest.mark.parametrize(("method", "with_base"), [(m, base) for m, found in REFERENCES.items() for base in found[1]])
@given(merge=merges())
@settings(max_examples=40, deadline=None)
def test_a_method_is_its_definition_on_whole_vectors(method, with_base, merge):
    reference, _, most, options, tolerance = REFERENCES[method]
    models, weights, base = merge[0][:most], merge[1][:most], merge[2] if with_base else None
    origin = merge[2] if with_base else 0
    expected = reference(models - origin, weights / weights.sum())
    assert relative(apply(method, models, weights, base, **options) - origin, expected) < max(tolerance, 1e-9)


@pytest.mark.promise(24)
@pytest.mark.parametrize("method", [*WEIGHTED, "karcher", "model_stock"])
@both
@given(merge=merges(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_laws_of_every_method_for_any_number_of_models(method, with_base, merge, seed):
    models, weights, base = merge
    base = base if with_base or method == "model_stock" else None
    order = np.random.default_rng(seed).permutation(len(models))
    expected = apply(method, models, weights, base)
    assert relative(apply(method, models[order], weights[order], base), expected) < 1e-11
    assert relative(apply(method, models, 7.5 * weights, base), expected) < 1e-11
    same = np.tile(models[0], (len(models), 1))
    assert relative(apply(method, same, weights, base), models[0]) < 1e-12


def test_weights_that_are_not_normalised_multiply_the_length():
    models, weights = np.eye(5)[:3] + 0.1, (0.2, 0.4, 0.9)
    for method, options in (("multislerp", {}), ("linear", {}), ("task_arithmetic", {"base": np.zeros(5)})):
        scaled = apply(method, models, weights, normalized=False, **options)
        assert np.allclose(scaled, 1.5 * apply(method, models, weights, **options))


@both
@pytest.mark.parametrize("method", WEIGHTED)
def test_a_model_of_weight_zero_is_absent(method, with_base):
    models, base = np.random.default_rng(1).normal(size=(3, 20)), np.ones(20) if with_base else None
    found = apply(method, models, (0.3, 0.0, 0.7), base)
    assert np.allclose(found, apply(method, models[[0, 2]], (0.3, 0.7), base), rtol=1e-12)


@pytest.mark.promise(22)
@pytest.mark.parametrize("zero", range(3))  # the pivot, and others
@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_a_zero_tensor_adds_nothing_to_direction_and_length(method, zero):
    models = np.random.default_rng(2).normal(size=(3, 20))
    models[zero] = 0
    expected = 2 / 3 * apply(method, np.delete(models, zero, axis=0), (1, 1))
    assert np.allclose(apply(method, models, (1, 1, 1)), expected, rtol=1e-12)
    if method == "karcher":  # as mergekit
        assert np.allclose(apply("slerp", [models[zero], np.ones(20)], (1, 1), t=0.5), np.sin(np.pi / 4))


@both
@pytest.mark.parametrize("normalized", [True, False])
def test_a_single_model_is_returned_as_it_is_whatever_its_weight(normalized, with_base):
    gram = gram_of(np.arange(4.0)[None], np.ones(4) if with_base else None)
    made_of = METHODS["multislerp"](gram, Settings((0.5,), normalized))
    assert (made_of.base, made_of.members.tolist()) == (0.0, [1.0])


@pytest.mark.promise(22)
@pytest.mark.parametrize("method", ["multislerp", "linear_norm_matched", "karcher"])
def test_two_opposite_models_are_merged_linearly_and_noted_and_more_are_an_error(method):
    vector = np.random.default_rng(3).normal(size=50)
    made_of = METHODS[method](gram_of([vector, -vector]), Settings((1.0, 1.0)))
    assert made_of.members.tolist() == [0.5, 0.5]
    assert "merged linearly" in made_of.note
    with pytest.raises(MergeError, match=r"cancel(.|\n)*where: t"):
        METHODS[method](gram_of([vector, -vector, 0 * vector]), Settings((1, 1, 0)))
    if method != "karcher":
        with pytest.raises(MergeError, match="cancel"):
            METHODS[method](gram_of([vector] * 3), Settings((1, 2, -3), normalized=False))


@pytest.mark.promise(22)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", ["multislerp", "linear_norm_matched", "karcher", "model_stock", "task_arithmetic"])
def test_a_tensor_no_model_changed_is_that_of_the_base_and_one_of_zeros_stays_zero(method, count):
    base, settings_ = np.random.default_rng(4).normal(size=50), Settings((1.0,) * count, method != "task_arithmetic")
    assert np.allclose(apply(method, [base] * count, settings_.weights, base, normalized=settings_.normalized), base)
    made_of = METHODS[method](gram_of([base] * count, base), settings_)
    assert method == "task_arithmetic" or "base's tensor" in made_of.note
    if method not in ("model_stock", "task_arithmetic"):
        made_of = METHODS[method](gram_of(np.zeros((count, 5))), settings_)
        assert made_of.members.tolist() == [0.0] * count
        assert "zero" in made_of.note


def test_a_mixture_that_almost_cancels_keeps_its_length():
    # x1 - x2 of siblings: the common part is a thousand times what is left.
    generator = np.random.default_rng(5)
    models = generator.normal(size=4000) + 1e-3 * generator.normal(size=(2, 4000))
    settings_ = Settings((1.0, -0.9999), normalized=False)
    made_of = linear_norm_matched(gram_of(models), settings_)
    expected = np.array(settings_.weights) @ np.linalg.norm(models, axis=1)
    assert np.isclose(np.linalg.norm(made_of.members @ models), abs(expected), rtol=1e-9)
    length, _ = gram_of(models).length(np.array([1.0, -0.9999]))
    assert np.isclose(length, np.linalg.norm(models[0] - 0.9999 * models[1]), rtol=1e-10)


@pytest.mark.promise(24)
@given(merge=merges(smallest=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_inner_products_by_way_of_any_pivot_are_the_direct_ones(merge, data):
    rows = np.vstack([merge[2], merge[0]])
    order = data.draw(st.permutations(range(len(rows))))
    members, base = order[1:], order[0] if data.draw(st.booleans()) else None
    family = TensorGram("t", rows.shape[1], True, gram_of(rows[1:], rows[0]).matrix)
    for gram in (family.view(members, base), gram_of(rows[members], None if base is None else rows[base])):
        assert np.allclose(gram.models, rows[members] @ rows[members].T, rtol=1e-9, atol=1e-11)
        expected = np.linalg.norm(rows[members][:, None] - rows[members][None], axis=2)
        assert np.allclose(distances(gram), expected, rtol=1e-6, atol=1e-7)
        if base is not None:
            updates = rows[members] - rows[base]
            assert np.allclose(gram.updates, updates @ updates.T, rtol=1e-9, atol=1e-12)


@pytest.mark.promise(24)
def test_small_updates_and_long_sums_keep_their_digits():
    # |x - base|^2 out of the products of whole tensors would be off by 1e-3 here.
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300_000, generator=generator)
    member = base * (1 + 1e-3 * torch.randn(300_000, generator=generator))
    exact = float((member.double() - base.double()).square().sum())
    assert abs(gram_of([member], base).updates[0, 0] / exact - 1) < 1e-13
    tensor = torch.full((4_000_000,), 0.1).add_(torch.linspace(0, 0.01, 4_000_000))
    exact = float(np.linalg.norm(tensor.numpy().astype(np.float64)))
    one_by_one = float(np.cumsum(np.square(tensor.numpy()), dtype=np.float32)[-1]) ** 0.5
    assert abs(one_by_one / exact - 1) > 1e-4  # the trap: summed in float32, one after another
    assert np.abs(norms(gram_of([tensor, tensor]).models) / exact - 1).max() < 1e-13


@pytest.mark.promise(22)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("guilty", [0, 2])
def test_a_value_that_is_not_finite_is_an_error_naming_model_and_tensor(value, guilty):
    tensors = [np.ones(10) for _ in range(3)]
    tensors[guilty][3] = value
    said = "values are too large for their squares" if value == 1e200 else rf"NaN or infinity in m{guilty}\n"
    with pytest.raises(MergeError, match=rf"some\.weight: {said}"):
        tensor_gram("some.weight", tensors, True, ["m0", "m1", "m2"])


def test_inner_products_survive_being_saved(tmp_path):
    made = (np.cov(np.random.default_rng(n).normal(size=(3, 7))) for n in range(2))
    tensors = tuple(TensorGram(f"t{n}", 7, True, matrix) for n, matrix in enumerate(made))
    table = GramTable(("base", "a", "b"), ("1f", "2f", "3f"), True, tensors)
    save_grams(tmp_path / "one.npz", table)
    save_grams(tmp_path / "two.npz", load_grams(tmp_path / "one.npz"))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    saved = load_grams(tmp_path / "one.npz")
    assert (saved.models, saved.fingerprints, saved.has_base) == (table.models, table.fingerprints, True)
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(saved.tensors, tensors, strict=True))
    for content in (b"not a zip", b"PK\x03\x04 a zip cut short"):
        (tmp_path / "three.npz").write_bytes(content)
        with pytest.raises(MergeError, match=r"three\.npz"):
            load_grams(tmp_path / "three.npz")
