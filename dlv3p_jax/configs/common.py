"""Every configuration key with its default. Other configs start from here and state only what differs."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The defaults: DeepLabV3+ on ResNet-50-vd at output stride 8, trained as PaddleSeg trains it."""
    config = ConfigDict()

    # Data. Sizes are (height, width).
    config.dataset = config_dict.placeholder(str)  # name of a prepared TFDS data set
    config.data_dir = "data"
    config.train_split = "train"
    config.eval_split = "val"
    config.num_classes = config_dict.placeholder(int)  # None: the data set's
    config.ignore_label = 255
    config.crop_size = (512, 1024)
    config.eval_size = config_dict.placeholder(tuple)  # pad pictures to this; None: their own size
    config.batch_size = 8  # global, over all devices
    config.accumulate_steps = 1  # micro-batches of a batch, computed one after the other, which takes less memory
    config.cache_pictures = False  # keep decoded training pictures in memory, of 4 bytes a pixel
    config.augment = ConfigDict()
    config.augment.min_scale = 0.5
    config.augment.max_scale = 2.0
    config.augment.scale_step = 0.25  # 0: scales are uniform between min and max
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 18  # of Pillow's 8-bit H channel
    config.augment.flip = True
    config.augment.vertical_flip = 0.0  # probability of turning a crop upside down
    config.augment.rotation = 0.0  # degrees: crops are turned by an angle in ± this
    config.augment.max_class_share = 1.0  # a crop in which a class has this share or more is drawn again, ten times

    # Training.
    config.num_train_steps = 80_000
    config.optimizer = "sgd"  # or "adamw"
    config.schedule = "poly"  # or "cosine"
    config.learning_rate = 0.01
    config.end_learning_rate = 0.0
    config.poly_power = 0.9
    config.momentum = 0.9  # AdamW's first beta
    config.weight_decay = 4e-5
    config.decay_norm_and_bias = config_dict.placeholder(bool)  # None: with SGD yes, with AdamW no
    config.seed = 0
    config.pretrained = config_dict.placeholder(str)  # a published model or backbone, a .pdparams, a checkpoint
    config.log_every_steps = 50
    config.eval_every_steps = 2_000
    config.checkpoint_every_steps = 1_000
    config.allow_changed_data = False  # whether a run may go on where the training pictures or labels are others now
    config.keep_checkpoints = 3  # the latest so many; the best by mIoU is kept beside them
    config.early_stopping = ConfigDict()
    config.early_stopping.patience = config_dict.placeholder(int)  # end after so many evaluations without a new best
    config.profile_steps = 0  # trace so many steps for TensorBoard's profiler, from the tenth on
    config.warmup_steps = 0
    config.clip_grad_norm = config_dict.placeholder(float)
    config.ema_decay = config_dict.placeholder(float)
    config.backbone_lr_factor = 1.0
    config.freeze_backbone = False
    config.loss = ConfigDict()
    config.loss.cross_entropy = 1.0
    config.loss.rmi = 0.0
    config.loss.dice = 0.0
    config.loss.lovasz = 0.0
    config.loss.class_weights = config_dict.placeholder(object)  # numbers, or "balanced": from the data's counts
    config.loss.top_k = 1.0  # share of all pixels, the hardest first
    config.loss.average_over = "valid"  # or "all": ignored pixels count as 0, as in MMSegmentation
    config.loss.ohem_min_kept = config_dict.placeholder(int)  # so many of the hardest pixels a picture alone count
    config.loss.ohem_threshold = config_dict.placeholder(float)  # and all of a lower probability than this
    config.loss.auxiliary = 0.4  # weight of the cross-entropy of model.auxiliary_head

    config.model = ConfigDict()
    config.model.backbone = "resnet50_vd"
    config.model.output_stride = 8
    config.model.multi_grid = (1, 2, 4)
    config.model.aspp_rates = (1, 12, 24, 36)
    config.model.aspp_channels = 256
    config.model.align_corners = False
    # What other families than PaddleSeg's have otherwise: docs/networks.md.
    config.model.stem = "deep"  # or "plain"
    config.model.avg_down = True
    config.model.stage1_shortcut = True
    config.model.contract_dilation = False
    config.model.multi_grid_kind = "factors"  # or "dilations"
    config.model.dilate_second = True
    config.model.aspp_pooling_first = False
    config.model.aspp_projection_size = 1
    config.model.head_bias = True
    config.model.head_depthwise_relu = False
    config.model.decoder_channels = 256
    config.model.low_level_channels = 48
    config.model.mean = (127.5, 127.5, 127.5)
    config.model.std = (127.5, 127.5, 127.5)
    config.model.auxiliary_head = False  # a second classifier on the third stage, in training alone
    config.model.dropout = 0.1
    config.model.dtype = "float32"  # or "bfloat16", or "auto": bfloat16 on GPUs and TPUs
    config.model.remat = False  # compute the backbone's activations again for the gradient: less memory, more time

    config.eval = ConfigDict()
    config.eval.batch_size = 8  # global
    config.eval.scales = (1.0,)
    config.eval.flip = False
    config.eval.window = config_dict.placeholder(tuple)  # sliding window (height, width); None: the whole picture
    config.eval.stride = config_dict.placeholder(tuple)  # None: two thirds of the window
    config.eval.average = "logits"  # or "legacy", or MMSegmentation's "probabilities"
    config.eval.resize = config_dict.placeholder(tuple)  # fit pictures into these sides before; None: their own size
    config.eval.align_corners = False  # on the way back to the size of the picture

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: all devices
    config.mesh.space = 1
    return config
