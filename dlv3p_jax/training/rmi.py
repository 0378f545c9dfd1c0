"""Region mutual information (Zhao, Wang, Yang, Cai: "Region Mutual Information Loss for Semantic Segmentation", 2019).

How it is computed in float32. With p the 9-vectors of the predictions and d = y - p those of the errors, the matrix
M of the loss is the Schur complement of p in the joint matrix J of (p, d) with its ridge, so that log det M is read off
the last 9 entries on the diagonal of J's Cholesky factor. J itself cannot be factorised in float32: its largest entries
are as large as the number of positions, 1e5, and those that matter as small as the ridge, 5e-4, which late in training
is most of M. Hence the positions are read three times: a rough factor (with a small multiple of the diagonal added, so
that it exists) makes vectors that are far less correlated, and their own factor is rough no more; the factors multiply.
This is the shifted Cholesky-QR algorithm (Fukaya et al., SIAM J. Sci. Comput. 42, 2020): as stable as a QR
factorisation of the data, and made of matrix products. Where predictions are nearly perfect and edges straight, it
keeps more digits than the formula of the paper does in float64 (1e-7 against up to 2e-3 of the value).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

REGION = 3  # the side of a region, of the pooling before and its stride
SMALLEST = REGION * (REGION - 1) + 1  # pixels of a side that holds a region
POINTS = REGION * REGION
RIDGE = 5e-4
HIGHEST = jax.lax.Precision.HIGHEST  # float32 is float32, on a TPU too
SHIFTS = (1e-4, 1e-4, 0.0)  # what each factorisation adds, as a share of the diagonal

# A region is described by sums and differences, not by its 9 values: neighbours are so much alike that these are far
# less correlated, and exactly 0 where they are equal. Along one side: the sum, the slope and the curvature.
_SIDE_BASIS = np.array([[1, 1, 1], [-1, 0, 1], [1, -2, 1]])
_BASIS = np.kron(_SIDE_BASIS, _SIDE_BASIS)


def rmi(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """RMI loss with a sigmoid for each class, as PaddleSeg's `RMILoss` computes it with its defaults, in float32.

    Probabilities and one-hot labels, both 0 at pixels that are not valid, are max-pooled (3x3, stride 3, padding 1).
    The 3x3 region around every position makes a vector of 9, of predictions p and of labels y; both are centred over
    the positions of one picture and class. With the sums of products S over the positions and a = 5e-4,
    M = S_yy - S_yp (S_pp + a I)^-1 S_yp^T + a I is how badly p foretells y, and the loss is the sum over the classes of
    the mean over the pictures of log det(M) / 18. **It is negative where M is small, which is normal.**

    It grows with the logarithm of the number of positions, so values compare at one size of pictures only. A class that
    is not in a picture's labels adds the constant log(a) / 2 there, and no gradient beyond rounding; as does a picture
    without a valid pixel. PaddleSeg also adds 1e-6 to each probability, which the centring removes, and 1e-8 inside the
    logarithm, which moves the loss of a class by less than 5e-7.

    Regions do not cross pictures, so that the value is the same however the batch is sharded.

    Args:
        logits: `[B, H, W, C]`, float32 or bfloat16, H and W at least 7; computed in float32.
        labels: integers `[B, H, W]` in `0..C-1`; `ignore_label` and everything else outside the classes is left out.
        ignore_label: the label that is left out.

    Returns:
        A float32 scalar, finite with finite gradients for finite logits; the gradient at ignored pixels is 0.

    Raises:
        ValueError: on shapes that do not fit, or pictures too small to hold a region.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} differ in their leading dimensions")
    batch, height, width, num_classes = logits.shape
    if min(height, width) < SMALLEST:
        raise ValueError(f"RMI of pictures of {height}x{width}: both sides must be at least {SMALLEST} pixels")

    labels = labels.astype(jnp.int32)
    one_hot = (labels[..., None] == jnp.arange(num_classes)) & (labels != ignore_label)[..., None]
    valid = jnp.any(one_hot, axis=-1, keepdims=True)
    # The largest probability is that of the largest logit, so that only a ninth of them needs a sigmoid.
    logits = _max_pool(jnp.where(valid, logits, -jnp.inf)).astype(jnp.float32)
    one_hot = _pool(one_hot.astype(jnp.int8), np.int8(0), jax.lax.max) > 0
    log_dets = _half_log_det(jnp.moveaxis(logits, -1, 0), jnp.moveaxis(one_hot, -1, 0))
    return jnp.sum(log_dets) / (POINTS * batch)


def _pool(x, initial, function):
    window, padding = (1, REGION, REGION, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, initial, function, window, window, padding)


# Differentiated by hand: on CPUs and GPUs the automatic way sorts out indices, in six times the memory of the logits.
@jax.custom_vjp
def _max_pool(x):
    """The largest of each window of `[B, H, W, C]`; the first of those that tie has the gradient."""
    return _pool(x, -jnp.inf, jax.lax.max)


def _max_pool_forward(x):
    largest = _max_pool(x)
    return largest, (x, largest)


def _max_pool_backward(residuals, cotangent):
    x, largest = residuals

    def spread(pooled):  # windows do not overlap: every pixel is in one, but for a last row and column left over
        wide = jnp.repeat(jnp.repeat(pooled, REGION, axis=1), REGION, axis=2)
        cut = [(-1, size + 1 - wide_size, 0) for size, wide_size in zip(x.shape[1:3], wide.shape[1:3], strict=True)]
        return jax.lax.pad(wide, jnp.zeros((), wide.dtype), ((0, 0, 0), *cut, (0, 0, 0)))

    row, column = ((jax.lax.broadcasted_iota(jnp.int32, (1, *x.shape[1:3], 1), axis) + 1) % REGION for axis in (1, 2))
    place = (row * REGION + column).astype(jnp.int8)
    first = _pool(jnp.where(x == spread(largest), place, POINTS), np.int8(POINTS), jax.lax.min)
    return (jnp.where(place == spread(first), spread(cotangent), 0),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@jax.custom_vjp
def _half_log_det(logits, one_hot):
    """log det(M) / 2, float32 `[C, B]`, of pooled float32 logits and boolean labels `[C, B, h, w]`."""
    return _half_log_det_forward(logits, one_hot)[0]


def _half_log_det_forward(logits, one_hot):
    # J is the sum of x x^T over the positions, plus the ridge: a I for (p, y), which this basis makes a T T^T.
    to_basis = np.block([[_BASIS, np.zeros_like(_BASIS)], [-_BASIS, _BASIS]])
    ridge = (RIDGE * to_basis @ to_basis.T).astype(np.float32)
    size = len(ridge)
    whitening = jnp.broadcast_to(jnp.eye(size, dtype=jnp.float32), (*logits.shape[:2], size, size))
    value: jax.Array | np.float32 = -np.float32(np.linalg.slogdet(_BASIS).logabsdet)
    for shift in SHIFTS:
        joint = jax.lax.map(lambda one: _products(_transform(one[2], _regions(*one[:2]))), (logits, one_hot, whitening))
        joint += jnp.einsum("cbij,jk,cblk->cbil", whitening, ridge, whitening, precision=HIGHEST)
        factor = jnp.linalg.cholesky(joint * np.float32(1 + shift * np.eye(size)))
        value += jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)[..., POINTS:]), axis=-1)
        whitening = jax.scipy.linalg.solve_triangular(factor, whitening, lower=True)
    return value, (logits, one_hot, whitening[..., POINTS:, :])


def _half_log_det_backward(residuals, cotangent):
    """With W the last rows of J's inverse factor, r = W x is what p does not foretell of y, at unit variance.

    p (S_pp + a I)^-1 S_yp^T is the ridge regression of y, at the minimum of what it minimises, so that its change with
    p does not count: the gradient is that of |W x|^2 / 2 with W held. Of x = (p, y - p), p moves both halves.
    """

    def one_class(one):
        logits, one_hot, whitening, cotangent = one
        residual = _transform(whitening, _regions(logits, one_hot))
        residual -= jnp.mean(residual, axis=(-2, -1), keepdims=True)
        change = (whitening[..., :POINTS] - whitening[..., POINTS:]) * cotangent[:, None, None]
        gradient = _transform(jnp.swapaxes(change, -1, -2), residual)
        (gradient,) = jax.linear_transpose(_describe, logits)(gradient)
        return gradient * jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits)

    return jax.lax.map(one_class, (*residuals, cotangent)), None


_half_log_det.defvjp(_half_log_det_forward, _half_log_det_backward)


def _regions(logits, one_hot):
    """The vectors (p, y - p) of all regions of one class, in the basis: `[B, h, w]` -> `[B, 18, h - 2, w - 2]`."""
    probabilities = jax.nn.sigmoid(logits)
    # 1 - p would lose its digits where p is nearly 1, which is where training ends.
    errors = jnp.where(one_hot, jax.nn.sigmoid(-logits), -probabilities)
    centred = (x - jnp.mean(x, axis=(-2, -1), keepdims=True) for x in (probabilities, errors))
    return jnp.concatenate([_describe(x) for x in centred], axis=1)


def _describe(x):
    """`[B, h, w]` -> `[B, 9, h - 2, w - 2]`: the region around every position, in the basis."""

    def along(x, axis):
        length = x.shape[axis] - REGION + 1
        first, second, third = (jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(REGION))
        return first + second + third, third - first, (first - second) + (third - second)

    return jnp.stack([both for rows in along(x, 1) for both in along(rows, 2)], axis=1)


def _products(x):
    """The sums of products over the positions, centred: `[B, n, h, w]` -> `[B, n, n]`."""
    x -= jnp.mean(x, axis=(-2, -1), keepdims=True)
    # Row by row: short sums round less, and there is work for every core of a GPU.
    rows = jnp.einsum("bihw,bjhw->bhij", x, x, precision=HIGHEST)
    return jnp.sum(rows, axis=1)


def _transform(matrices, x):
    """Every vector times its picture's matrix: `[B, m, n]`, `[B, n, h, w]` -> `[B, m, h, w]`."""
    return jnp.einsum("bij,bjhw->bihw", matrices, x, precision=HIGHEST)
