"""Find duplicates among any number of documents. A task holds a range of hashes or a shard, never the whole corpus.

Everything that is compared (a URL, a text, a line, a bucket of MinHash) is a 64-bit hash, and each shard writes a table
of hashes, sorted by hash. A task reads its range of hashes from the tables of all shards, so equal hashes always meet
in one task, for any number of shards, ranges and workers. The task writes its result as a table sorted by place, and
each shard reads its own part of it.
"""
