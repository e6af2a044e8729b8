"""`megagpt search clusters`."""

from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.cli.search.results import bold, json_line, shortened


@click.command("clusters", cls=Command, short_help="Divide the documents into groups by meaning.")
@options.index
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Clusters to make.")
@options.seed
@options.as_json
def command(folder: Path, count: int, seed: int, as_json: bool) -> None:
    """Divide the documents into groups by meaning, and name each by its most central texts and by its words.

    \b
    Examples
      megagpt search clusters docs_index --count 20
      megagpt search clusters docs_index --count 20 --json > clusters.jsonl

    It is k-means on vectors of length 1. The words of a cluster are more frequent in it than in all documents. --json
    prints one object per cluster, with the numbers of all its documents.
    """
    from megagpt.evaluate.clusters import find_clusters
    from megagpt.evaluate.index import Index

    index = Index.open(folder)
    texts = [record["text"] for record in index.texts]
    for number, cluster in enumerate(find_clusters(index.vectors, texts, count, seed), 1):
        central = [{"number": row, "text": texts[row]} for row in cluster.central]
        if as_json:
            facts = {"words": cluster.words, "cohesion": round(cluster.cohesion, 6), "central": central}
            click.echo(json_line({"cluster": number} | facts | {"numbers": cluster.rows}), nl=False)
            continue
        click.echo(bold(f"{number}. {', '.join(cluster.words)}"))
        click.echo(f"   {len(cluster.rows)} documents, mean cosine with their centre {cluster.cohesion:.3f}")
        for one in central:
            click.echo(f"   {click.style('#' + str(one['number']), fg='cyan')}  {shortened(one['text'])}")
