"""The operations whose fastest form depends on the backend: one function an operation, its form chosen at trace time.

Pictures are `[B, H, W, C]`, an array or `Tiled`, and results are what they are; kernels `[height, width, in, out]`.
Dilations are in pixels of whole pictures. Computed is in the pictures' type; kernels may be float32 all the same.
`form` is for tests and measurements:

- `"conv"`: XLA's convolution, what GPUs and TPUs are built for;
- `"taps"`: the same, but the gradient of its kernel is nine products (or sums), one for each tap;
- `"products"`: matrix products, or for depthwise convolutions multiply-adds, over windows that skip the padding;
- `"winograd"`: less than half as many products, for 3x3 convolutions with stride 1 (`models.winograd`);
- `"auto"`: on a CPU what is faster there, convolutions elsewhere. XLA's depthwise convolutions and their gradients are
  hundreds of times slower than multiply-adds on a CPU. On a GPU, taps for what is dilated: XLA makes of the gradient of
  a dilated kernel a convolution whose window is as large as the picture, and cuDNN has no good program for that.
  Convolutions too where several devices hold the rows of a picture: for these the compiler exchanges the rows at the
  borders, for windows it would gather all.

All forms are the same function with the same gradients. Padding is explicit everywhere: "SAME" pads strided
convolutions unevenly, which PaddleSeg does not.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlv3p_jax.models import columns, products, tiles, winograd
from dlv3p_jax.models.products import precision
from dlv3p_jax.models.tiles import Pictures, Tiled, add_neighbours
from dlv3p_jax.runtime import sharding

_NHWC = ("NHWC", "HWIO", "NHWC")


def _resolve(form: str, forms: tuple[str, ...], whole: bool = False, cpu: str = "conv", gpu: str = "conv") -> str:
    """`form`, one of "auto", "conv" and `forms`; for "auto" what this backend does best."""
    if form not in ("auto", "conv", *forms):
        raise ValueError(f"form={form!r}: give one of auto, conv, {', '.join(forms)}")
    if form != "auto":
        return form
    best = {"cpu": cpu, "gpu": gpu} if whole or sharding.num_row_shards() == 1 else {}
    return best.get(sharding.platform(), "conv")


def conv1x1(x: Pictures, kernel: jax.Array, form: str = "auto") -> Pictures:
    """A 1x1 convolution with stride 1. x: [B, H, W, C]; kernel: [1, 1, C, D] -> [B, H, W, D] in the type of `x`."""
    return tiles.like(x, _conv1x1(tiles.of(x).array, kernel, form))


def _conv1x1(x, kernel, form):
    if _resolve(form, ("products",), cpu="products") == "products":
        return products.conv1x1(x, kernel.astype(x.dtype))
    # Where devices hold rows, on every backend: of a 1x1 convolution whose result's gradient lies by columns, XLA (that
    # of jax 0.10.2) forgets to sum the kernel's gradient over `data`.
    if form == "auto" and sharding.num_row_shards() > 1:
        return products.product(x, kernel[0, 0].astype(x.dtype)).astype(x.dtype)
    return _conv(x, kernel)


def conv7x7(x: Pictures, kernel: jax.Array) -> Pictures:
    """A 7x7 convolution with stride 2, padded by 3. [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), D], type of `x`."""
    parts = _cleared(x)
    split = parts.strips > 1
    pixels = add_neighbours(parts, 3, 2) if split else parts.array
    return tiles.like(x, _conv(pixels, kernel, stride=2, pad_rows=not split), stride=2)


def conv3x3(x: Pictures, kernel: jax.Array, stride: int = 1, dilation: int = 1, form: str = "auto") -> Pictures:
    """A 3x3 convolution, padded by its dilation on every side.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C, D].
        stride: of both axes; the result has ceil(H / stride) rows.
        dilation: distance of neighbouring taps, in pixels of the whole pictures.
        form: see the head of this file.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), D] in the type of `x`.

    Raises:
        ValueError: `x` is in parts that such a convolution mixes.
    """
    parts = tiles.of(x)
    return tiles.like(x, _conv3x3(parts, kernel, stride, _dilation_within(parts, stride, dilation), form), stride)


def _conv3x3(parts, kernel, stride, dilation, form):
    beside = columns.count(kernel.shape[2], kernel.shape[3], stride, parts.shape[2]) if dilation == 1 else 1
    # Two of 64 channels are not enough: the 1x1 convolutions around would have to lay them out anew.
    if form == "auto" and beside > 2:
        return _conv3x3_beside(parts, kernel, stride, beside)
    parts = _cleared(parts)
    if parts.strips > 1:
        return _conv(add_neighbours(parts, 1, 0 if stride == 2 else 1), kernel, stride, pad_rows=False)
    x = parts.array
    best = {"cpu": _best_on_cpu(x, kernel, stride, dilation), "gpu": "taps" if dilation > 1 else "conv"}
    form = _resolve(form, ("products", "taps", "winograd"), **best)
    if form == "winograd":
        if stride > 1:
            raise ValueError(f"form='winograd' has no stride of {stride}: give 'auto'")
        return winograd.conv3x3(x, kernel.astype(x.dtype), dilation)
    if form == "products":
        return products.conv3x3(x, kernel.astype(x.dtype), stride, dilation)
    if form == "taps":
        return _conv_taps(x, kernel.astype(x.dtype), stride, dilation)
    return _conv(x, kernel, stride, dilation)


def _conv3x3_beside(parts, kernel, stride, beside):
    """With neighbouring columns side by side in the channels, see `columns`."""
    parts = _beside(parts, stride * beside)
    rows = (1, 0 if stride == 2 else 1)
    pixels = add_neighbours(parts, *rows) if parts.strips > 1 else parts.array
    geometry = ((stride, 1), 1, 1, ((0, 0) if parts.strips > 1 else rows, rows))
    return columns.apart(_convolve(pixels, columns.widen(kernel, beside, stride), geometry), beside)


def _dilation_within(parts, stride, dilation):
    """The dilation of a convolution on parts of pictures."""
    if parts.cuts and (stride > 1 or dilation % 2**parts.cuts):
        raise ValueError(f"cuts={parts.cuts}, stride={stride} and dilation={dilation}: sub-images would be mixed")
    within = dilation // 2**parts.cuts
    if parts.strips > 1 and within > 1:
        raise ValueError(f"strips={parts.strips} and dilation={within}: a strip knows one row of its neighbours")
    return within


def _best_on_cpu(x, kernel, stride, dilation):
    # In bfloat16, Winograd's sums of pixels would have to be rounded once more.
    if stride == 1 and x.dtype != jnp.bfloat16 and winograd.pays(x.shape, kernel.shape, dilation):
        return "winograd"
    # With fewer channels, moving nine windows costs more than the products save.
    return "products" if min(kernel.shape[2:]) >= 512 else "conv"


def depthwise_conv3x3(x: Pictures, kernel: jax.Array, dilation: int = 1, form: str = "auto") -> Pictures:
    """A 3x3 convolution of each channel with its own filter, stride 1, padded by its dilation on every side.

    On a mesh whose devices hold rows of pictures, and fewer than the dilation, it is computed on all rows of some
    channels: otherwise it would need rows of more than its neighbours.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, 1, C].
        dilation: distance of neighbouring taps, in pixels of the whole pictures; may exceed H and W.
        form: see the head of this file.

    Returns:
        [B, H, W, C] in the type of `x`.

    Raises:
        ValueError: as `conv3x3`.
    """
    parts = _cleared(x)
    dilation = _dilation_within(parts, 1, dilation)
    if parts.strips > 1:
        y = _conv(add_neighbours(parts, 1, 1), kernel, groups=x.shape[-1], pad_rows=False)
    elif tiles.are_on_one_device(parts):
        y = _depthwise_conv3x3(parts.array, kernel, dilation, form, whole=True)
    elif dilation * sharding.num_row_shards() <= x.shape[1]:
        y = _depthwise_conv3x3(parts.array, kernel, dilation, form, whole=False)
    else:
        y = sharding.by_channels(sharding.by_height(parts.array))
        y = _depthwise_conv3x3(y, kernel, dilation, form, whole=True)
        y = sharding.by_height(sharding.by_channels(y))
    return tiles.like(x, y)


def _depthwise_conv3x3(x, kernel, dilation, form, whole):
    form = _resolve(form, ("products", "taps"), whole, cpu="products", gpu="taps" if dilation > 1 else "conv")
    if form == "products":
        return products.depthwise_conv3x3(x, kernel.astype(x.dtype), dilation)
    if form == "taps":
        return _conv_taps(x, kernel.astype(x.dtype), 1, dilation)
    return _conv(x, kernel, dilation=dilation, groups=x.shape[-1])


def max_pool3x3(x: Pictures) -> Pictures:
    """3x3 max pooling with stride 2 and padding 1. [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C].

    Of equal pixels the first gets the gradient, by rows; where columns are side by side (`columns`), by columns.
    """
    beside, rows = columns.count(x.shape[-1], x.shape[-1], 2, x.shape[2]), (1, 1)
    parts = _beside(tiles.of(x), 2 * beside, -np.inf) if beside > 1 else _cleared(x, -np.inf)
    pixels = parts.array
    if parts.strips > 1:
        pixels, rows = add_neighbours(parts, 1, 0, padding=-np.inf), (0, 0)
    width, stride, sides = (1, 1, (0, 0)) if beside > 1 else (3, 2, (1, 1))
    # The initial value has to be a Python number: with an array, XLA does not see a max pool, and there is no gradient.
    padding = ((0, 0), rows, sides, (0, 0))
    y = lax.reduce_window(pixels, -np.inf, lax.max, (1, 3, width, 1), (1, 2, stride, 1), padding)
    return tiles.like(x, columns.apart(columns.maxima(y, beside), beside) if beside > 1 else y, stride=2)


def avg_pool2x2(x: Pictures) -> Pictures:
    """2x2 mean pooling with stride 2; windows that hang over the border average their real pixels ("ceil mode").

    x: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C].
    """
    parts = _cleared(x)
    height, width = x.shape[1:3]
    y = parts.array
    if height % 2 or width % 2:  # else the gradient of the padding of nothing would be a picture of zeros
        # Repeating an odd last row leaves the mean over the real pixels as it is.
        y = jnp.pad(y, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    y = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
    if parts.sizes is None:
        return tiles.like(x, y)
    # A window that hangs over the border of a picture, on one side or on both, has taken in zeros.
    ones = dataclasses.replace(parts, array=jnp.ones((*x.shape[:3], 1), y.dtype))
    share = avg_pool2x2(tiles.cleared(ones))
    return tiles.like(x, y / jnp.maximum(share, 0.25), stride=2)


def _cleared(x: Pictures, padding: float = 0.0) -> Tiled:
    """`x`, whose neighbours an operation looks at, with what it has to meet outside of each picture."""
    parts = tiles.of(x)
    return dataclasses.replace(parts, array=tiles.cleared(parts, padding))


def _beside(parts: Tiled, number: int, padding: float = 0.0) -> Tiled:
    """`_cleared` with so many columns side by side, and only then: a mask of single columns would be laid out anew."""
    parts = dataclasses.replace(parts, array=columns.beside(parts.array, number))
    return dataclasses.replace(parts, array=tiles.cleared(parts, padding, number))


def _conv(x, kernel, stride=1, dilation=1, groups=1, pad_rows=True):
    pad = (kernel.shape[0] // 2) * dilation
    return _convolve(x, kernel, ((stride, stride), dilation, groups, ((pad, pad) if pad_rows else (0, 0), (pad, pad))))


def _convolve(x, kernel, geometry):
    """With `geometry`: strides of rows and columns, dilation, groups, padding of rows and of columns."""
    if sharding.platform() == "tpu" and x.dtype == jnp.bfloat16:
        return _bfloat16_conv(x, kernel, geometry)
    return _lax_conv(x, kernel.astype(x.dtype), geometry, precision(x.dtype))


def _lax_conv(x, kernel, geometry, precision):
    strides, dilation, groups, padding = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bfloat16_conv(x, kernel, geometry):
    """Of a float32 kernel, whose gradient never is bfloat16: as such it would be summed over the chips of a mesh."""
    return _lax_conv(x, kernel.astype(x.dtype), geometry, lax.Precision.DEFAULT)


def _bfloat16_conv_forward(x, kernel, geometry):
    return _bfloat16_conv(x, kernel, geometry), (x, kernel)


def _bfloat16_conv_backward(geometry, residuals, cotangent):
    x, kernel = residuals
    _, pull_back = jax.vjp(lambda x: _lax_conv(x, kernel.astype(x.dtype), geometry, lax.Precision.DEFAULT), x)
    # At its default precision a TPU multiplies these in bfloat16, which they are, and adds in float32.
    wide = x.astype(jnp.float32)
    convolve = lambda kernel: _lax_conv(wide, kernel.astype(jnp.float32), geometry, lax.Precision.DEFAULT)  # noqa: E731
    _, pull_kernel_back = jax.vjp(convolve, kernel)
    return *pull_back(cotangent), *pull_kernel_back(cotangent.astype(jnp.float32))


_bfloat16_conv.defvjp(_bfloat16_conv_forward, _bfloat16_conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_taps(x, kernel, stride, dilation):
    return _conv(x, kernel, stride, dilation, groups=x.shape[3] // kernel.shape[2])


def _conv_taps_forward(x, kernel, stride, dilation):
    return _conv_taps(x, kernel, stride, dilation), (x, kernel)


def _conv_taps_backward(stride, dilation, residuals, cotangent):
    x, kernel = residuals
    groups = x.shape[3] // kernel.shape[2]
    _, pull_back = jax.vjp(lambda x: _conv(x, kernel, stride, dilation, groups), x)
    if groups > 1:
        gradient = products.depthwise_kernel_gradient(x, cotangent, dilation).astype(kernel.dtype)
        return *pull_back(cotangent), gradient
    return *pull_back(cotangent), products.kernel_gradient(x, kernel, cotangent, stride, dilation)


_conv_taps.defvjp(_conv_taps_forward, _conv_taps_backward)
