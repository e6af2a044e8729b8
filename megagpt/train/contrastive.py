"""The symmetric InfoNCE loss over all pairs of the global batch (arXiv 2201.10005), and its gradients by the vectors.

For M pairs of queries x and documents y, scaled so that x . y is cosine / temperature, and further negatives n:

    loss = mean over i of ( CE(x_i . [y_1 ... y_M, n_1 ...], i) + CE(y_i . [x_1 ... x_M], i) ) / 2

Each replica has the vectors of its own pairs, gathers all others, and computes the rows of its own pairs. The rows of
all replicas contribute to the gradients of a vector, so the gradients are summed over replicas.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megagpt.config.embedding import EmbedConfig
from megagpt.data.pair_loader import ABSENT, PairBatch

BLOCK = 1 << 26
"""Approximate number of logits in memory at the same time, for any batch: 256 MiB in float32."""

METRICS = ("batch_accuracy", "positive_cosine", "temperature")
"""Share of queries whose own document has the highest logit; mean cosine of query and own document; temperature."""


class ContrastiveObjective:
    """Trains a model to find each query's own document among all documents of the batch, and each document's query.

    The loss needs the vectors of all pairs together. If one micro-batch has all pairs of a replica, the loss is
    computed from its output. Otherwise a forward pass without gradients computes the vectors first, and the
    micro-batches carry the gradients of the loss by their vectors (GradCache, arXiv 2101.06983), see `with_gradients`.
    """

    metric_names = METRICS

    def __init__(self, settings: EmbedConfig) -> None:
        self.settings = settings
        self.group: dist.ProcessGroup | None = None
        """The ranks of all replicas that have vectors; set after groups are created. None for a single replica."""

    def forward(self, model: torch.nn.Module, batch: PairBatch) -> Tensor:
        """See `Objective.forward`; the last stage returns vectors, float32 [B, H]."""
        return model(batch.tokens, batch.position_ids, None, labels=batch.labels)

    def loss(self, output: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `Objective.loss`; the count is the number of pairs. The gradient is that of the global batch's loss."""
        if batch.gradients is None:
            (batch,) = with_gradients([output.detach()], [batch], self.settings, self.group)
        product = (output * batch.gradients).sum()
        loss, count, *metrics = batch.sums.unbind()
        return loss + product - product.detach(), count, tuple(metrics)


def with_gradients(
    vectors: list[Tensor], batches: list[PairBatch], settings: EmbedConfig, group: dist.ProcessGroup | None
) -> list[PairBatch]:
    """A step's micro-batches with the gradients of its loss by their vectors, float32 [B, H] each.

    vectors: float [B, H] of each micro-batch. group: the ranks of all replicas, which must call this together. The
    first micro-batch gets the sums and the count of the whole step; the others get zeros.
    """
    vectors = [each.float() for each in vectors]
    text_ids = batches[0].text_ids.to(vectors[0].device)
    texts = torch.zeros(text_ids.numel(), vectors[0].shape[1], device=vectors[0].device)
    for each, batch in zip(vectors, batches, strict=True):
        texts[batch.places] = each[: len(batch.places)]  # further rows only fill the batch
    gradients, sums = contrastive_gradients(texts.view(*text_ids.shape, -1), text_ids, settings, group)
    gradients, found = gradients.flatten(0, 1), []
    for number, (each, batch) in enumerate(zip(vectors, batches, strict=True)):
        own = torch.zeros_like(each)
        own[: len(batch.places)] = gradients[batch.places]
        found.append(batch.with_step(own, sums if number == 0 else torch.zeros_like(sums)))
    return found


def contrastive_gradients(
    texts: Tensor, text_ids: Tensor, settings: EmbedConfig, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the loss's sum over all pairs, float32 [K, m, H], and this replica's sums, float32 [5].

    texts: float32 [K, m, H], this replica's vectors of m queries, their documents, and K - 2 negatives of each pair.
    text_ids: int64 [K, m], see `PairBatch`. The sums are the loss, the count and `METRICS`. Collective over `group`.
    """
    kinds, pairs, _ = texts.shape
    everyone, ids = (_gathered(values, group) for values in (texts, text_ids))
    rank = 0 if group is None else group.rank()
    own = torch.arange(rank * pairs, (rank + 1) * pairs, device=texts.device)
    with torch.enable_grad():
        whole = everyone.requires_grad_()
        size = whole.detach()[0, 0].norm()  # length of every vector; its square is 1 / temperature
        lengths = whole.norm(dim=-1, keepdim=True)  # the temperature's gradient comes through these
        parts = [whole, *(F.normalize(whole[..., :part], dim=-1) * lengths for part in settings.dimensions)]
        leaves = [part.detach().requires_grad_() for part in parts]
        step = max(1, BLOCK // max(1, kinds * len(ids[0])))
        blocks = [
            _block(leaf, ids, rows, size, settings.false_negative_margin) for leaf in leaves for rows in own.split(step)
        ]
        gradients = torch.autograd.grad(parts, whole, [leaf.grad / len(parts) for leaf in leaves])[0]
    if group is not None:
        dist.all_reduce(gradients, group=group)
    sums = torch.stack(blocks).view(len(leaves), -1, 3).sum(1)
    temperature = pairs / size.square()
    count = torch.full_like(temperature, pairs)
    loss, correct, cosine = sums[:, 0].mean(), sums[0, 1], sums[0, 2]
    return gradients[:, own].contiguous(), torch.stack((loss, count, correct, cosine, temperature))


def _gathered(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Values [K, m, ...] of every replica -> [K, M, ...], in the order of the ranks of `group`."""
    if group is None or group.size() == 1:
        return values.clone()
    parts = [torch.empty_like(values) for _ in range(group.size())]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.cat(parts, 1)


def _block(whole: Tensor, ids: Tensor, rows: Tensor, size: Tensor, margin: float | None) -> Tensor:
    """Sums over the pairs `rows` (int64 [b]) of loss, correct choices and cosines, float32 [3].

    whole: float32 [K, M, H]; the loss's gradient is added to `whole.grad`. size: length of every vector.
    """
    queries, documents = whole[0], whole[1:].flatten(0, 1)
    own = torch.stack((rows, torch.arange(len(rows), device=rows.device)))
    of_queries = queries[rows] @ documents.t()
    of_documents = whole[1][rows] @ queries.t()
    positives = of_queries[own[1], own[0]]
    with torch.no_grad():
        same = _same_texts(ids, rows)
        left_out = same, same[:, : len(queries)]
        if margin is not None:
            limit = (positives + margin * size.square())[:, None]
            left_out = left_out[0] | (of_queries > limit), left_out[1] | (of_documents > limit)
        for mask in left_out:
            mask[own[1], own[0]] = False
    to_documents = of_queries.masked_fill(left_out[0], -torch.inf)
    to_queries = of_documents.masked_fill(left_out[1], -torch.inf)
    loss = ((to_documents.logsumexp(1) + to_queries.logsumexp(1)) / 2 - positives).sum()
    loss.backward()
    with torch.no_grad():
        right = (to_documents.argmax(1) == rows).sum()
        return torch.stack((loss.detach(), right.float(), positives.sum() / size.square()))


def _same_texts(ids: Tensor, rows: Tensor) -> Tensor:
    """Bool [b, (K - 1) M]: documents that are no negatives of the pairs `rows`, because they are absent or equal texts.

    Two pairs with an equal query or document are no negatives of each other on either side.
    """
    query, positive = (ids[kind][rows][:, None] for kind in (0, 1))
    same = [(ids[0] == query) | (ids[1] == positive) | (ids[0] == positive) | (ids[1] == query)]
    same += [(each == positive) | (each == query) | (each == ABSENT) for each in ids[2:]]
    return torch.cat(same, 1)
