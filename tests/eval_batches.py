"""Evaluation batches of a prepared split, every size by itself."""

from dlv3p_jax.data import padding, pipeline, size_buckets


def plan(dataset, split, batch_size, eval_size=None):
    sizes = [[padding.padded_size(size, eval_size)] * 2 for size in dataset.sizes(split)]
    return size_buckets.batches(sizes, batch_size, 0)


def of(dataset, split, batch_size, eval_size=None, rows=None):
    planned = plan(dataset, split, batch_size, eval_size)
    return pipeline.eval_batches(dataset, split, planned, ignore_label=255, rows=rows or range(batch_size))
