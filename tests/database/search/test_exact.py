from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.database.search.exact import (
    QUERY_ROWS,
    blocks_of,
    canonical_similarities,
    exact_search,
    quantize,
    rank,
)
from rdm.database.search.shortlist import GROUP_ROWS, PANEL_ROWS, ShortlistPrecision, rounded

NONE = np.zeros(0, np.int64)


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim))
    return quantize((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def brute_force(
    queries: np.ndarray, vectors: np.ndarray, k: int, dead: set[int]
) -> tuple[list[list[int]], np.ndarray]:
    """Compare every pair in float64, one by one, and sort by (similarity, id)."""
    ids, similarities = [], np.full((len(queries), k), -np.inf, np.float32)
    for row, query in enumerate(queries.astype(np.float64)):
        scores = [
            (np.float32((query * vector).sum()), number)
            for number, vector in enumerate(vectors.astype(np.float64))
            if number not in dead
        ]
        best = sorted(scores, key=lambda pair: (-pair[0], pair[1]))[:k]
        ids.append([number for _, number in best] + [-1] * (k - len(best)))
        similarities[row, : len(best)] = [score for score, _ in best]
    return ids, similarities


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, set[int]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from([1, 2, 3, 8, 33]))
    distinct = unit_vectors(rng, draw(st.integers(1, 30)), dim)
    # duplicates make ties
    vectors = distinct[rng.integers(0, len(distinct), draw(st.integers(1, 60)))]
    queries = np.concatenate([unit_vectors(rng, draw(st.integers(1, 4)), dim), vectors[:2]])
    dead = draw(st.sets(st.integers(0, len(vectors) - 1), max_size=len(vectors)))
    return queries, vectors, draw(st.integers(1, 25)), dead


@given(searches(), st.sampled_from(["int8", "fp32"]))
def test_exact_search_equals_brute_force_to_the_bit(
    search: tuple[np.ndarray, np.ndarray, int, set[int]], precision: ShortlistPrecision
) -> None:
    queries, vectors, k, dead = search
    excluded = np.array(sorted(dead), np.int64)
    ids, similarities = exact_search(
        queries, [(0, vectors)], k, excluded=excluded, precision=precision
    )
    expected_ids, expected = brute_force(queries, vectors, k, dead)
    assert ids.tolist() == expected_ids
    assert similarities.tobytes() == expected.tobytes()


@given(
    searches(),
    st.lists(st.integers(1, 60), max_size=3),
    st.integers(1, 70),
    st.randoms(use_true_random=False),
)
def test_parts_blocks_their_order_and_batches_do_not_matter(
    search: tuple[np.ndarray, np.ndarray, int, set[int]], cuts: list[int], rows: int, random: object
) -> None:
    queries, vectors, k, dead = search
    excluded = np.array(sorted(dead), np.int64)
    bounds = sorted({0, len(vectors), *(cut for cut in cuts if cut < len(vectors))})
    parts = [(low, vectors[low:high]) for low, high in zip(bounds, bounds[1:], strict=False)]
    blocks = list(blocks_of(parts, rows))
    random.shuffle(blocks)  # type: ignore[attr-defined]
    whole = exact_search(queries, [(0, vectors)], k, excluded=excluded)
    blocked = exact_search(queries, blocks, k, excluded=excluded)
    single = [
        exact_search(queries[row : row + 1], blocks, k, excluded=excluded)
        for row in range(len(queries))
    ]
    for position in (0, 1):
        assert whole[position].tobytes() == blocked[position].tobytes()
        assert (
            whole[position].tobytes()
            == np.concatenate([result[position] for result in single]).tobytes()
        )


def test_read_only_maps_are_searched_as_they_are() -> None:
    vectors = unit_vectors(np.random.default_rng(0), 30, 8)
    expected = exact_search(vectors, [(0, vectors)], 3, excluded=NONE)
    locked = vectors.copy()
    locked.flags.writeable = False
    found = exact_search(locked, [(0, locked)], 3, excluded=NONE)
    assert np.array_equal(found[0], expected[0])


@given(searches(), st.integers(1, 25))
def test_fewer_neighbors_are_a_prefix_of_more(
    search: tuple[np.ndarray, np.ndarray, int, set[int]], fewer: int
) -> None:
    queries, vectors, k, _ = search
    fewer = min(fewer, k)
    long, short = (
        exact_search(queries, [(0, vectors)], count, excluded=NONE) for count in (k, fewer)
    )
    np.testing.assert_array_equal(long[0][:, :fewer], short[0])
    np.testing.assert_array_equal(long[1][:, :fewer], short[1])


def test_the_nearest_is_found_though_it_is_rounded_down_and_all_others_up() -> None:
    """In steps of the scale the nearest has 60.45, rounded to 60; the others have 60.55 and 60.3,
    rounded to 61 and 60.

    Every vector is there with both signs, so that the center is 0; the first number makes the
    scale. The others fill a group, so that nothing is looked at for its neighbors' sake.
    """
    others = GROUP_ROWS // 2
    step, tail = 1 / 1024, np.repeat([60.55, 60.3], [120, 135])
    rows = [*(np.roll(tail, shift) for shift in range(others)), np.full(255, 60.45)]
    vectors = quantize(
        step * np.stack([[sign * 127, *(sign * row)] for row in rows for sign in (1, -1)])
    )
    query = quantize(np.full((1, 256), 1 / 16))
    whole = rounded(vectors, np.zeros(256, np.float32), GROUP_ROWS, "int8").values.sum(dim=1)
    assert whole[GROUP_ROWS] < whole[:GROUP_ROWS:2].min() - 100
    ids, _ = exact_search(query, [(0, vectors)], 1, excluded=NONE, precision="int8")
    assert ids.tolist() == [[GROUP_ROWS]]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_threshold_raised_again_and_again_loses_nothing(precision: ShortlistPrecision) -> None:
    """Panel after panel raises it, in several lots of queries."""
    rng = np.random.default_rng(1)
    unit = unit_vectors(rng, 3 * PANEL_ROWS + 100, 16)
    queries = unit[: QUERY_ROWS + 7]
    found = exact_search(queries, [(0, unit)], 9, excluded=NONE, precision=precision)
    expected = exact_search(
        queries,
        [(start, unit[start : start + 1000]) for start in range(0, len(unit), 1000)],
        9,
        excluded=NONE,
    )
    assert all(one.tobytes() == other.tobytes() for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_both_precisions_find_the_same_among_thousands(precision: ShortlistPrecision) -> None:
    rng = np.random.default_rng(5)
    centers = rng.standard_normal((40, 64))
    vectors = centers[rng.integers(0, 40, 3000)] + 0.3 * rng.standard_normal((3000, 64))
    unit = quantize((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    queries = unit[::7]
    found = exact_search(
        queries, blocks_of([(0, unit)], 700), 20, excluded=NONE, precision=precision
    )
    scores = canonical_similarities(queries, np.broadcast_to(unit, (len(queries), *unit.shape)))
    expected = np.stack([rank(np.arange(3000), row, 20) for row in scores])
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1], np.take_along_axis(scores, expected, 1))


def test_near_ties_that_single_precision_cannot_tell_apart_are_ranked_exactly() -> None:
    """All candidates lie within one rounding error of each other: only the canonical score tells
    them apart."""
    rng = np.random.default_rng(3)
    query = unit_vectors(rng, 1, 512)
    vectors = np.repeat(query, 200, axis=0)
    column = rng.integers(0, 512, 200)
    vectors[np.arange(200), column] = np.nextafter(vectors[np.arange(200), column], np.float16(1))
    ids, similarities = exact_search(query, blocks_of([(0, vectors)], 7), 50, excluded=NONE)
    expected_ids, expected = brute_force(query, vectors, 50, set())
    assert ids.tolist() == expected_ids
    assert similarities.tobytes() == expected.tobytes()


@given(
    st.lists(st.tuples(st.integers(-1, 9), st.sampled_from([0.0, 0.5, 1.0])), max_size=12),
    st.integers(1, 12),
)
def test_rank_sorts_by_similarity_then_id_and_drops_empty_places(
    pairs: list[tuple[int, float]], k: int
) -> None:
    ids = np.array([number for number, _ in pairs], np.int64)
    similarities = np.array([value for _, value in pairs], np.float32)
    found = [(-similarities[place], ids[place]) for place in rank(ids, similarities, k)]
    assert found == sorted((-value, number) for number, value in pairs if number >= 0)[:k]


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 12))
def test_blocks_cover_every_row_once(sizes: list[int], rows: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    parts = [
        (start, np.arange(start, start + size, dtype=np.float16)[:, None])
        for start, size in zip(starts.tolist(), sizes, strict=False)
    ]
    blocks = list(blocks_of(parts, rows))
    assert all(1 <= len(vectors) <= rows for _, vectors in blocks)
    assert [int(value) for _, vectors in blocks for value in vectors[:, 0]] == list(
        range(sum(sizes))
    )
    assert all(int(vectors[0, 0]) == first for first, vectors in blocks)


def test_quantized_queries_are_contiguous_half_precision() -> None:
    quantized = quantize(np.asfortranarray(np.full((2, 3), 0.1)))
    assert (quantized.dtype, quantized.flags["C_CONTIGUOUS"]) == (np.float16, True)
    assert quantized[0, 0] == pytest.approx(0.1, rel=2**-11)


def test_queries_of_another_type_are_refused() -> None:
    vectors = np.zeros((4, 8), np.float16)
    with pytest.raises(TypeError, match="queries are float32, not float16"):
        exact_search(
            vectors.astype(np.float32),  # pyright: ignore[reportArgumentType]
            [(0, vectors)],
            1,
            excluded=np.zeros(0, np.int64),
        )
