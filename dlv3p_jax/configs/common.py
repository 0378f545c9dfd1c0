"""Every configuration key with its default. Other configs start from here and state only what differs.

The comment behind a key is its meaning in --help.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The defaults: DeepLabV3+ on ResNet-50-vd at output stride 8, trained as PaddleSeg trains it."""
    config = ConfigDict()

    # Data. Sizes are (height, width).
    config.dataset = config_dict.placeholder(str)  # name of a prepared TFDS data set
    config.data_dir = "data"  # folder of prepared data sets, or gs://BUCKET/FOLDER
    config.train_split = "train"  # split to train on
    config.eval_split = "val"  # split to evaluate on
    config.num_classes = config_dict.placeholder(int)  # number of classes; None: the data set's
    config.ignore_label = 255  # label of pixels that count nowhere
    config.crop_size = (512, 1024)  # training crop, (height, width)
    config.eval_size = config_dict.placeholder(tuple)  # pad evaluated pictures to this; None: their own size
    config.batch_size = 8  # pictures of a step, over all devices
    config.accumulate_steps = 1  # micro-batches of a batch, computed one after the other, which takes less memory
    config.cache_pictures = False  # keep decoded training pictures in memory, of 4 bytes a pixel
    config.augment = ConfigDict()
    config.augment.min_scale = 0.5  # smallest random scale
    config.augment.max_scale = 2.0  # largest random scale
    config.augment.scale_step = 0.25  # between the scales that are drawn; 0: any between min and max
    config.augment.brightness = 0.4  # factor uniform in 1 ± this, with probability 0.5
    config.augment.contrast = 0.4  # factor uniform in 1 ± this, with probability 0.5
    config.augment.saturation = 0.4  # factor uniform in 1 ± this, with probability 0.5
    config.augment.hue = 18  # shift uniform in ± this, of Pillow's circle of 256
    config.augment.flip = True  # mirror left to right with probability 0.5
    config.augment.vertical_flip = 0.0  # probability of turning a crop upside down
    config.augment.rotation = 0.0  # degrees: crops are turned by an angle in ± this
    config.augment.max_class_share = 1.0  # a crop in which a class has this share or more is drawn again, ten times

    # Training.
    config.num_train_steps = 80_000  # length of training, and of the schedule
    config.optimizer = "sgd"  # "sgd" or "adamw"
    config.schedule = "poly"  # "poly" or "cosine": how the learning rate falls
    config.learning_rate = 0.01  # at the start of the schedule
    config.end_learning_rate = 0.0  # at the end of the schedule
    config.poly_power = 0.9  # of poly: end + (start - end) (1 - step / steps)^power
    config.momentum = 0.9  # of SGD; AdamW's first beta
    config.weight_decay = 4e-5  # L2 in SGD's gradient; decoupled in AdamW
    config.decay_norm_and_bias = config_dict.placeholder(bool)  # None: with SGD yes, with AdamW no
    config.seed = 0  # decides initialisation, order, augmentation and dropout
    config.pretrained = config_dict.placeholder(str)  # published model or backbone, .pdparams, checkpoint
    config.log_every_steps = 50  # steps between log lines, which hold means over them
    config.eval_every_steps = 2_000  # steps between evaluations
    config.checkpoint_every_steps = 1_000  # steps between checkpoints
    config.allow_changed_data = False  # whether a run may go on where the training pictures or labels are others now
    config.keep_checkpoints = 3  # how many of the latest; the best by mIoU is kept beside them
    config.early_stopping = ConfigDict()
    config.early_stopping.patience = config_dict.placeholder(int)  # end after so many evaluations without a new best
    config.profile_steps = 0  # trace so many steps for TensorBoard's profiler, from the tenth on
    config.warmup_steps = 0  # steps in which the learning rate rises linearly
    config.clip_grad_norm = config_dict.placeholder(float)  # largest global norm of the gradient; None: any
    config.ema_decay = config_dict.placeholder(float)  # of a moving average of the weights, evaluated too
    config.backbone_lr_factor = 1.0  # factor on the backbone's learning rate
    config.freeze_backbone = False  # leave the backbone's parameters and statistics as they are
    config.loss = ConfigDict()
    config.loss.cross_entropy = 1.0  # weight of cross-entropy
    config.loss.rmi = 0.0  # weight of RMI
    config.loss.dice = 0.0  # weight of Dice
    config.loss.lovasz = 0.0  # weight of Lovász-softmax
    config.loss.class_weights = config_dict.placeholder(object)  # a number a class, or "balanced"; None: all 1
    config.loss.top_k = 1.0  # share of all pixels, the hardest first
    config.loss.average_over = "valid"  # "valid" pixels, or "all": ignored ones count as 0, as in MMSegmentation
    config.loss.ohem_min_kept = config_dict.placeholder(int)  # hardest pixels a picture that count; None: all
    config.loss.ohem_threshold = config_dict.placeholder(float)  # and all of a lower probability than this
    config.loss.auxiliary = 0.4  # weight of the cross-entropy of model.auxiliary_head

    config.model = ConfigDict()
    config.model.backbone = "resnet50_vd"  # resnet18_vd, 34, 50, 101 or 152
    config.model.output_stride = 8  # 8 or 16
    config.model.multi_grid = (1, 2, 4)  # factors on the dilations of the last stage's blocks
    config.model.aspp_rates = (1, 12, 24, 36)  # dilations of the ASPP's branches
    config.model.aspp_channels = 256  # width of the ASPP's branches
    config.model.align_corners = False  # how features and logits are resized
    # What other families than PaddleSeg's have otherwise: docs/networks.md.
    config.model.stem = "deep"  # "deep": three 3x3 convolutions, or "plain": one 7x7
    config.model.avg_down = True  # a shortcut that strides takes the mean of 2x2 pixels
    config.model.stage1_shortcut = True  # the first basic block has a convolution in its shortcut
    config.model.contract_dilation = False  # the first block of a dilated stage has half of its dilation
    config.model.multi_grid_kind = "factors"  # what multi_grid is: "factors" or "dilations"
    config.model.dilate_second = True  # the second 3x3 of a basic block is dilated too
    config.model.aspp_pooling_first = False  # the pooled picture is the first branch, not the last
    config.model.aspp_projection_size = 1  # kernel over all branches, 1 or 3
    config.model.head_bias = True  # convolutions of ASPP and decoder have biases
    config.model.head_depthwise_relu = False  # a ReLU after the head's depthwise convolutions too
    config.model.decoder_channels = 256  # width of the decoder
    config.model.low_level_channels = 48  # width of the fine features in the decoder
    config.model.mean = (127.5, 127.5, 127.5)  # colour that the network sees as 0
    config.model.std = (127.5, 127.5, 127.5)  # and what the difference is divided by
    config.model.auxiliary_head = False  # a second classifier on the third stage, in training alone
    config.model.dropout = 0.1  # share that is dropped after the ASPP
    config.model.dtype = "float32"  # "float32", "bfloat16", or "auto": bfloat16 on GPUs and TPUs
    config.model.remat = False  # compute the backbone's activations again for the gradient: less memory, more time

    config.eval = ConfigDict()
    config.eval.batch_size = 8  # pictures at a time, over all devices
    config.eval.scales = (1.0,)  # sizes of the views, relative to the picture
    config.eval.flip = False  # view every scale mirrored as well
    config.eval.window = config_dict.placeholder(tuple)  # sliding window (height, width); None: the whole picture
    config.eval.stride = config_dict.placeholder(tuple)  # between windows; None: two thirds of the window
    config.eval.average = "logits"  # "logits" or "legacy" of the views, or MMSegmentation's "probabilities"
    config.eval.resize = config_dict.placeholder(tuple)  # fit pictures into these sides before; None: do not
    config.eval.align_corners = False  # how logits are brought back to the size of the picture
    config.eval.buckets = 16  # pictures of many sizes share so many programs; 0: each size has its own

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1: all
    config.mesh.space = 1  # devices that split the height of pictures
    return config
