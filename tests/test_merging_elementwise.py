"""TIES and SCE on streamed chunks against their definitions on whole arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_merging_checkpoints import CONFIG, write_json

from boom_utils.merging.checkpoints import CHUNK, each_tensor
from boom_utils.merging.elementwise import ELEMENTWISE
from boom_utils.merging.family import open_checkpoints
from boom_utils.merging.methods import Settings


def ties(base, models, weights, densities, normalized=True, scale=1.0):
    updates = (models - base).astype(np.float64)
    for update, density in zip(updates, densities, strict=True):
        count = max(int(density * update.size), 1) if density > 0 else 0
        sizes = np.abs(update.astype(np.float32))
        smallest = np.sort(sizes)[::-1][count - 1] if count else np.inf
        update[sizes < smallest] = 0
    weighted = updates * weights[:, None]
    sign = np.where(weighted.sum(axis=0) >= 0, 1.0, -1.0)
    agree = np.sign(weighted) == sign
    merged = (weighted * agree).sum(axis=0)
    share = (weights[:, None] * agree).sum(axis=0)
    if normalized:
        merged = merged / np.where(np.abs(share) < 1e-8, 1.0, share)
    return base + scale * merged


def sce(base, models, selected):
    updates = (models - base).astype(np.float64)
    if selected < 1:
        variance = updates.var(axis=0).astype(np.float32)
        count = int(selected * np.count_nonzero(variance))
        smallest = np.sort(variance)[::-1][count - 1] if count else np.inf
        updates = updates * (variance >= smallest)
    energy = (updates**2).mean(axis=1)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(energy), 1 / len(energy))
    sign = np.where(updates.sum(axis=0) >= 0, 1.0, -1.0)
    shares = weights[:, None] * (np.sign(updates) == sign)
    return base + (shares * updates).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-6)


def streamed(folder, method, rows, settings_):
    """The merged vector (N,) of (1 + M, N) rows, the base first, by way of files and chunks."""
    for number, row in enumerate(rows):
        (folder / f"m{number}").mkdir(parents=True, exist_ok=True)
        write_json(folder / f"m{number}" / "config.json", CONFIG)
        save_file({"w.weight": np.ascontiguousarray(row)}, folder / f"m{number}" / "model.safetensors")
    models = open_checkpoints([folder / f"m{number}" for number in range(len(rows))])
    merged = np.empty(rows.shape[1])

    def merge(tensor):
        fill = ELEMENTWISE[method](tensor, list(range(len(rows))), settings_)
        tensor.map(lambda start, chunk: fill(chunk, merged[start : start + chunk.size]))

    list(each_tensor(models, ["w.weight"], merge, threads=2))
    return merged


@st.composite
def families(draw):
    """A base and models (1 + M, N) in float32: siblings, with equal values and frozen elements among them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, size = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    base = generator.normal(size=size)
    updates = generator.normal(size=(count, size)) * draw(st.sampled_from([1.0, 1e-3]))
    if draw(st.booleans()):
        updates = np.round(updates, 1)  # ties at the threshold, and zeros
    return np.vstack([base, base + updates]).astype(np.float32)


@pytest.mark.promise(24)
@given(rows=families(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_streamed_ties_is_its_definition(tmp_path_factory, rows, data):
    count = len(rows) - 1
    number = st.floats(-2, 2).filter(lambda weight: abs(weight) > 0.01)
    weights = np.array(data.draw(st.lists(number, min_size=count, max_size=count)))
    densities = data.draw(st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]), min_size=count, max_size=count))
    normalized, scale = data.draw(st.booleans()), data.draw(st.sampled_from([1.0, 0.4]))
    settings_ = Settings(tuple(weights), normalized, densities=tuple(densities), scale=scale)
    found = streamed(tmp_path_factory.mktemp("ties"), "ties", rows, settings_)
    wide = rows.astype(np.float64)  # in float32 a sum that decides a sign would be rounding noise
    expected = ties(wide[0], wide[1:], weights, densities, normalized, scale)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.promise(24)
@given(rows=families(), selected=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_streamed_sce_is_its_definition(tmp_path_factory, rows, selected):
    base, models = rows[0].astype(np.float64), rows[1:].astype(np.float64)
    found = streamed(tmp_path_factory.mktemp("sce"), "sce", rows, Settings((1.0,) * len(models), selected=selected))
    assert np.allclose(found, sce(base, models, selected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["ties", "sce"])
def test_a_threshold_is_that_of_the_whole_tensor_and_not_of_a_chunk(tmp_path, method):
    generator = np.random.default_rng(0)
    size = 2 * CHUNK + 77
    base = generator.normal(size=size)
    growing = np.linspace(0.001, 1, size)  # most of what is kept lies in the last chunk
    rows = np.vstack([base, *(base + growing * generator.normal(size=size) for _ in range(3))]).astype(np.float32)
    settings_ = Settings((0.2, 0.5, 1.0), densities=(0.1, 0.2, 1.0), selected=0.1)
    found = streamed(tmp_path, method, rows, settings_)
    wide = rows.astype(np.float64)
    if method == "ties":
        expected = ties(wide[0], wide[1:], np.array([0.2, 0.5, 1.0]), (0.1, 0.2, 1.0))
    else:
        expected = sce(wide[0], wide[1:], 0.1)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_opposite_weights_cancel_exactly_and_a_sum_of_zero_counts_as_positive(tmp_path):
    generator = np.random.default_rng(3)
    base = generator.normal(size=500)
    update = generator.normal(size=500)
    rows = np.vstack([base, base + update, base + update]).astype(np.float32)
    weights = (1 / 3, -1 / 3)
    found = streamed(tmp_path, "ties", rows, Settings(weights, False, densities=(1.0, 1.0)))
    assert np.array_equal(found, ties(*np.split(rows.astype(np.float64), [1]), np.array(weights), (1.0, 1.0), False)[0])
