"""The module of each data set that can be prepared; the others, and the libraries that they need, are not imported.

Every module has a function `make_builder(data_dir, source, *, name, **options)`, which finds pictures and labels and
gives the `PictureBuilder` that reads and writes them. `data_dir` is where TFDS makes NAME/VERSION, `source` the folder
that the data set was extracted to, `name` what it is called here. `options` are `workers` and `skip_bad` of
`PictureBuilder`. Where a module takes more, or another source, it says so. DatasetError is raised where a folder is
missing, or pictures and labels do not match.
"""


def module(name: str):
    """The module whose `make_builder` makes the data set; `name` is a key of `prepare.BUILDERS`."""
    match name:
        case "toy_streets":
            from dlv3p_jax.datasets.toy_streets import builder

            return builder
        case "image_folder":
            from dlv3p_jax.datasets import image_folder

            return image_folder
        case "cityscapes":
            from dlv3p_jax.datasets import cityscapes

            return cityscapes
        case "voc2012":
            from dlv3p_jax.datasets import voc2012

            return voc2012
        case "potsdam" | "vaihingen" | "isaid":
            from dlv3p_jax.datasets import aerial

            return aerial
        case "coco":
            from dlv3p_jax.datasets import coco

            return coco
        case "ultralytics":
            from dlv3p_jax.datasets import ultralytics

            return ultralytics
        case "tfds:NAME":
            from dlv3p_jax.datasets import tfds_catalogue

            return tfds_catalogue
        case "hf:PATH_OR_NAME":
            from dlv3p_jax.datasets import hugging_face

            return hugging_face
        case "ade20k" | "loveda" | "mapillary" | "pascal_context" | "pascal_context_59":
            from dlv3p_jax.datasets import scene_folders

            return scene_folders
    raise ValueError(f"{name}: no module makes this data set")
