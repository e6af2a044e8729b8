"""The files of a corpus: what Megatron-Core reads from them, and refusal of damaged ones by name."""

import hashlib
import json

import numpy as np
import pytest

from megagpt.data.indexed import corpus_files, open_corpus, write_corpus
from megagpt.errors import DataError

DOCUMENTS = [np.array([5, 6, 0]), np.array([0]), np.array([7, 8, 9, 299, 0])]


def make(prefix, vocab_size=300, documents=DOCUMENTS):
    parts = [
        (np.array([len(d) for d in part], np.int32), np.concatenate(part)) for part in (documents[:2], documents[2:])
    ]
    write_corpus(prefix, parts, len(documents), {"tokenizer_sha256": "a" * 64, "vocab_size": vocab_size})
    return prefix


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (65_499, np.uint16), (65_500, np.int32)])
def test_megatron_core_reads_it(tmp_path, vocab_size, dtype):
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

    make(tmp_path / "text", vocab_size)
    dataset = IndexedDataset(str(tmp_path / "text"))
    assert dataset.index.dtype == dtype == DType.optimal_dtype(vocab_size)
    assert dataset.document_indices.tolist() == list(range(len(DOCUMENTS) + 1))
    assert [dataset[index].tolist() for index in range(len(dataset))] == [d.tolist() for d in DOCUMENTS]


def test_bytes_equal_megatron_cores_own_builder(tmp_path):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    make(tmp_path / "ours")
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_about(tmp_path):
    _, about = open_corpus(make(tmp_path / "text"))
    total = sum(len(d) for d in DOCUMENTS)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in corpus_files(tmp_path / "text")]
    assert about == {
        "tokenizer_sha256": "a" * 64, "vocab_size": 300, "documents": 3, "tokens": total, "max_token": 299,
        "bin_sha256": hashes[0], "idx_sha256": hashes[1],
    }  # fmt: skip


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("keep", ["nothing", "one byte", "half", "all but one", "one more", "no file"])
def test_truncated_or_missing_file_is_refused_by_name(tmp_path, which, keep):
    path = corpus_files(make(tmp_path / "text"))[which]
    content = path.read_bytes()
    size = {"nothing": 0, "one byte": 1, "half": len(content) // 2, "all but one": len(content) - 2}.get(keep)
    if keep == "no file":
        path.unlink()
    else:
        path.write_bytes(content + b"x" if keep == "one more" else content[:size])
    with pytest.raises(DataError, match="preprocess") as error:
        open_corpus(tmp_path / "text")
    assert str(path) in str(error.value)


def test_files_of_two_corpora_are_refused(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two", documents=DOCUMENTS[::-1])
    make(tmp_path / "three", documents=[*DOCUMENTS, *DOCUMENTS])
    (tmp_path / "three.idx").replace(tmp_path / "two.idx")
    with pytest.raises(DataError, match=r"two\.idx and two\.json do not belong together"):
        open_corpus(tmp_path / "two")


def test_damaged_lengths_are_refused(tmp_path):
    prefix = make(tmp_path / "text")
    path = corpus_files(prefix)[1]
    content = bytearray(path.read_bytes())
    content[34] ^= 1  # the lowest bit of the first length
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"text\.idx is damaged"):
        open_corpus(prefix)


def test_token_beyond_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds token 299, beyond the vocabulary of 299"):
        open_corpus(make(tmp_path / "text", vocab_size=299))


def test_sidecar_of_the_wrong_type_is_refused(tmp_path):
    prefix = make(tmp_path / "text")
    path = corpus_files(prefix)[2]
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tokens": "12"}))
    with pytest.raises(DataError, match=r"text\.json is damaged"):
        open_corpus(prefix)


def test_failed_writing_leaves_no_corpus(tmp_path):
    prefix = make(tmp_path / "text")

    def parts():
        yield np.array([2], np.int32), np.array([1, 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(prefix, parts(), 2, {"tokenizer_sha256": "b" * 64, "vocab_size": 300})
    with pytest.raises(DataError, match="no whole corpus"):
        open_corpus(prefix)
    assert not list(tmp_path.glob("*tmp*"))
