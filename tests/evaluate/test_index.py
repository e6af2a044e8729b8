"""Search, duplicates, clusters and places of vectors, beside brute force and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from megagpt.data.texts import Text
from megagpt.errors import ConfigError
from megagpt.evaluate import index as indexes
from megagpt.evaluate.clusters import find_clusters, telling_words
from megagpt.evaluate.index import Index, find_duplicates, nearest, publish_index
from megagpt.evaluate.map_page import build_map, choose, place, values_of


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_vectors(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, size)))


def make_index(folder: Path, vectors: np.ndarray, records: list[dict] | None = None) -> Index:
    folder.mkdir(exist_ok=True)
    np.save(folder / "block.npy", vectors)
    job = {"checkpoint": {"folder": "runs/<b>embed</b>", "manifest_sha256": "0"}}
    about = {"count": len(vectors), "dimensions": vectors.shape[1], "job": job}
    texts = (Text(f"text number {n} <script>", record) for n, record in enumerate(records or [{}] * len(vectors)))
    publish_index(folder, [folder / "block.npy"], about, texts)
    (folder / "about.json").write_text(json.dumps(about))
    return Index.open(folder)


@pytest.mark.parametrize("backend", ["exact", "faiss"])
@pytest.mark.parametrize("k", [1, 10, 2000])
def test_search_in_blocks_is_brute_force(tmp_path, monkeypatch, backend, k):
    monkeypatch.setattr(indexes, "BLOCK_ROWS", 70)
    vectors, queries = random_vectors(1000), random_vectors(30, seed=1)
    vectors[500:503] = vectors[7]  # equal scores: the lower row is first
    queries[0] = vectors[7]
    scores, rows = make_index(tmp_path / "i", vectors).search(queries, k, backend)
    products = queries.astype(float) @ vectors.astype(float).T
    products[:, 500:503] = products[:, 7:8]  # a matrix product may give equal rows other last digits
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=1e-12)
    assert k == 1 or rows[0, :4].tolist() == [7, 500, 501, 502]


def test_memory_grows_neither_with_queries_nor_with_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "PRODUCTS", 600)
    monkeypatch.setattr(indexes, "LINE_BYTES", 7)
    vectors, queries, made = random_vectors(200), random_vectors(30, seed=1), []
    topk = indexes.torch.topk
    monkeypatch.setattr(indexes.torch, "topk", lambda values, k: made.append(values.shape) or topk(values, k))
    index = make_index(tmp_path / "i", vectors)
    expected = np.argsort(-(queries.astype(float) @ vectors.astype(float).T), axis=1)[:, :3]
    np.testing.assert_array_equal(index.search(queries, 3)[1], expected)
    assert made[0] == (30, 20)
    assert [index.texts[row]["text"] for row in range(200)] == [f"text number {n} <script>" for n in range(200)]


def test_of_many_equal_documents_those_found_are_in_order(tmp_path):
    vectors = np.repeat(random_vectors(1), 100, axis=0)
    rows = make_index(tmp_path / "i", vectors).search(vectors[:1], 10)[1][0]
    assert len(set(rows.tolist())) == 10 and (np.diff(rows) > 0).all()


def clustered(count: int, size: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    return unit(random_vectors(100, size)[rng.integers(0, 100, count)] + 0.1 * rng.normal(size=(count, size)))


def test_the_graph_finds_nearly_all_and_is_built_once(tmp_path, caplog):
    vectors = clustered(5000)
    queries = vectors[::50]
    index = make_index(tmp_path / "i", vectors)
    exact, found = index.search(queries, 10)[1], index.search(queries, 10, "hnsw")
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found[1], strict=True)]) > 0.95
    np.testing.assert_allclose(
        found[0], (vectors[found[1]].astype(float) * queries[:, None].astype(float)).sum(2), atol=1e-12
    )
    file = tmp_path / "i" / "hnsw.faiss"
    made = file.stat().st_mtime_ns
    np.testing.assert_array_equal(Index.open(tmp_path / "i").search(queries, 10, "hnsw")[1], found[1])
    assert file.stat().st_mtime_ns == made
    file.write_bytes(file.read_bytes()[:-999])
    np.testing.assert_array_equal(Index.open(tmp_path / "i").search(queries, 10, "hnsw")[0].shape, (100, 10))
    assert "cannot be read" in caplog.text and file.stat().st_mtime_ns != made


def test_a_graph_does_not_outlive_its_index(tmp_path):
    old, new = random_vectors(300), random_vectors(300, seed=1)
    new[0] = old[0]
    make_index(tmp_path / "i", old).search(old[:1], 5, "hnsw")
    assert (tmp_path / "i/hnsw.faiss").exists()
    for name in ("vectors.npy", "texts.jsonl", "about.json"):
        (tmp_path / "i" / name).unlink()
    index = make_index(tmp_path / "i", new)
    np.testing.assert_array_equal(index.search(new[:20], 5, "hnsw")[1][:, 0], np.arange(20))


def test_a_graph_that_reaches_too_few_is_not_relied_on(tmp_path):
    vectors = random_vectors(300)
    index = make_index(tmp_path / "i", vectors)
    np.testing.assert_array_equal(index.search(vectors[:2], 300, "hnsw")[1], index.search(vectors[:2], 300)[1])


def test_nearest_leaves_out_the_row_itself_and_not_its_twins():
    vectors = random_vectors(50)
    vectors[40] = vectors[3]
    scores, rows = nearest(vectors, 5)
    products = vectors.astype(float) @ vectors.astype(float).T
    np.fill_diagonal(products, -2)
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :5])
    assert rows[3, 0] == 40 and scores[3, 0] == pytest.approx(1)
    assert nearest(vectors[:1], 5)[1].shape == (1, 0)
    assert nearest(vectors[:3], 5)[1].shape == (3, 2)


def brute_force_groups(vectors: np.ndarray, above: float) -> list[list[int]]:
    close = vectors.astype(float) @ vectors.astype(float).T >= above
    groups, seen = [], set()
    for row in range(len(vectors)):
        group, waiting = set(), [row]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                group.add(one)
                waiting += np.flatnonzero(close[one]).tolist()
        if len(group) > 1:
            groups.append(sorted(group))
    return sorted(groups, key=lambda group: (-len(group), group[0]))


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("above", [0.6, 0.7, 0.9, 1.0])
def test_duplicates_are_what_chains_connect(block, above):
    vectors = random_vectors(200, size=8)
    vectors[150:160] = vectors[20:30]
    assert find_duplicates(vectors, above, block) == brute_force_groups(vectors, min(above, 1 - 1e-7))


def test_clusters_are_those_of_k_means():
    rng = np.random.default_rng(0)
    centres = random_vectors(3, seed=5)
    label = rng.permutation(np.repeat([0, 1, 2], [50, 30, 20]))
    vectors = unit(centres[label] + 0.05 * rng.normal(size=(100, 16)))
    words = np.array(["alpha_one", "beta22two", "gamma"])
    texts = [f"common {words[own]} common" for own in label]
    found = find_clusters(vectors, texts, 3)
    expected = KMeans(3, n_init=4, random_state=0).fit_predict(vectors)
    assert sorted(one.rows for one in found) == sorted(np.flatnonzero(expected == n).tolist() for n in range(3))
    assert [len(one.rows) for one in found] == [50, 30, 20]
    assert [sorted(one.words) for one in found] == [["alpha", "one"], ["beta", "two"], ["gamma"]]
    for own, one in enumerate(found):
        centre = vectors[label == own].mean(0)
        cosines = vectors[one.rows] @ centre / np.linalg.norm(centre)
        assert one.central == [one.rows[n] for n in np.argsort(-cosines)[:3]]
        assert one.cohesion == pytest.approx(cosines.mean(), abs=1e-5)


def test_fewer_clusters_where_fewer_vectors_differ():
    vectors = np.repeat(random_vectors(2), [5, 3], axis=0)
    found = find_clusters(vectors, ["..."] * 8, 4)
    assert [one.rows for one in found] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert [one.words for one in found] == [[], []]
    assert find_clusters(vectors[:1], ["one word"], 1)[0].words == ["one", "word"]


def test_a_word_of_all_texts_tells_nothing():
    words = telling_words(["same cat", "same cat", "same dog"], np.array([0, 0, 1]))
    assert words == {0: ["cat"], 1: ["dog"]}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_places(count):
    places = place(random_vectors(count), seed=0)
    assert places.shape == (count, 2) and np.isfinite(places).all()
    assert (place(np.repeat(random_vectors(1), count, axis=0), seed=0) == 0).all() or count > 1


def test_equal_vectors_have_equal_places():
    assert np.isfinite(place(np.repeat(random_vectors(1), 30, axis=0), seed=0)).all()


def test_near_vectors_have_near_places():
    label = np.repeat([0, 1], 25)
    vectors = unit(random_vectors(2, seed=1)[label] + 0.1 * np.random.default_rng(0).normal(size=(50, 16)))
    places = place(vectors, seed=0)
    distances = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(50, np.inf))
    assert (label[distances.argmin(1)] == label).all()
    np.testing.assert_array_equal(place(vectors, seed=0), places)


def test_some_of_many_points():
    assert choose(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    chosen = choose(1000, 10, 0)
    assert len(set(chosen.tolist())) == 10 and (np.diff(chosen) > 0).all()


def test_values_beyond_the_colours_are_one_group():
    values = [{"record": {"k": n}} for n in range(20) for _ in range(20 - n)] + [{"record": {}}]
    names, numbers = values_of(values, "k")
    assert names == [*map(str, range(11)), "other (10 values)"]
    assert (numbers == 11).sum() == sum(20 - n for n in range(11, 20)) + 1
    with pytest.raises(ConfigError, match="they have none"):
        values_of([{"record": {}}], "k")


def test_the_page_holds_no_text_as_html_and_fetches_nothing(tmp_path):
    page = build_map(make_index(tmp_path / "<i>", random_vectors(30)), groups=3, points=20)
    head, _, rest = page.partition('<script type="application/json" id="data">')
    assert "default-src 'none'" in head and "20 of 30 documents, chosen at random" in head
    assert "<script" not in head and "&lt;script&gt;" in head and "<b>embed" not in head and "Map of <i>" not in head
    data = json.loads(rest.partition("</script>")[0])
    assert len(data["x"]) == len(data["text"]) == len(data["near"]) == 20
    assert data["text"][3] == f"text number {data['number'][3]} <script>"
