"""DeepLabV3+ of segmentation_models_pytorch as a contestant of `benchmarks.compare`.

Another network of about the same work: a plain ResNet (one 7x7 convolution in its stem, no pooling in its shortcuts),
no multi-grid, logits at a quarter of the size enlarged with aligned corners. Its time is of interest, its logits are
not.
"""

import segmentation_models_pytorch
import torch

from benchmarks import torch_work, worker


def setup(specification: dict) -> worker.Contestant:
    """The network of that library which is nearest to ours, with random weights."""
    settings = specification["model"]
    torch.manual_seed(0)
    model = segmentation_models_pytorch.DeepLabV3Plus(
        encoder_name=settings["backbone"].removesuffix("_vd"),
        encoder_weights=None,
        encoder_output_stride=settings["output_stride"],
        decoder_channels=settings["aspp_channels"],
        decoder_atrous_rates=tuple(rate for rate in settings["aspp_rates"] if rate > 1),
        decoder_aspp_dropout=settings["dropout"],
        classes=specification["num_classes"],
    )
    contestant = torch_work.contestant(specification, model, has_our_weights=False)
    return contestant._replace(version=f"smp {segmentation_models_pytorch.__version__}, {contestant.version}")
