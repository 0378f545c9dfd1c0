"""How fast this machine trains, predicts, evaluates and reads pictures:

    python -m dlv3p_jax.benchmark --kind=train --config=configs/cityscapes_r50.py [--config.KEY=VALUE] [--json=FILE]

on made batches, so that no data is needed; nor is TensorFlow, but for --kind=input. The comparison with other
programs is in benchmarks/.
"""

import logging as stdlib_logging
import pathlib
import sys

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli, files, text

_INPUT_SIZE = (1024, 2048)  # of Cityscapes


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_enum(
        "kind",
        "train",
        ["train", "predict", "evaluate", "input"],
        "A training step; a forward pass; evaluation plain, with flip and with flip + scales, with counts; or the "
        "training pipeline from prepared PNG records to crops, with decoding and with decoded pictures kept.",
    )
    flags.DEFINE_list(
        "size",
        None,
        "HEIGHT,WIDTH of the pictures of predict and evaluate (config.crop_size by default) or of the made pictures "
        "that input reads (1024,2048 by default). Train takes config.crop_size.",
    )
    flags.DEFINE_integer("repeats", 5, "How many times each is measured.", lower_bound=1)
    flags.DEFINE_bool("compile_twice", True, "Measure compiling with JAX's persistent cache empty and filled.")
    flags.DEFINE_bool("use_data", False, "With --kind=input: read config.dataset in config.data_dir.")
    flags.DEFINE_string("json", None, "A file that the report goes to as JSON.")


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.require_config(argv)
    if values.size is not None and (values.kind == "train" or values.use_data):
        what = "--kind=train takes crops of --config.crop_size" if values.kind == "train" else "--use_data has its own"
        raise app.UsageError(f"--size={','.join(values.size)}: {what}")
    if values.use_data and values.kind != "input":
        raise app.UsageError("--use_data goes with --kind=input; the others measure made batches")
    if values.json is not None:
        cli.check_folder("benchmark", "json", pathlib.Path(values.json).parent)
    cli.configure_logging()
    import jax  # which wrong flags do not wait for

    from dlv3p_jax.performance import measured

    stdlib_logging.getLogger("jax").setLevel(stdlib_logging.WARNING)  # it tells of every change of its cache
    try:
        report = _measure(values)
        if values.json is not None:
            path = pathlib.Path(values.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, report)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(
            f"benchmark: the devices' memory is too small: take fewer or smaller pictures ({text.first_line(error)})"
        )
    print(measured.to_text(report), flush=True)


def _measure(values):
    from dlv3p_jax.performance import measured
    from dlv3p_jax.runtime import configuration

    config = values.config
    size = _INPUT_SIZE if values.kind == "input" else tuple(config.crop_size)
    if values.size is not None:
        size = cli.parse_size("size", values.size)
    if config.dataset is None:
        config.dataset = "made"
    configuration.check(config)
    if values.kind != "input":
        return measured.report(values.kind, config, size, values.repeats, values.compile_twice)
    try:
        from dlv3p_jax.performance import reading
    except ImportError as error:
        raise ValueError(
            f"--kind=input needs TensorFlow and tensorflow_datasets ({error}): pip install tensorflow-cpu "
            "tensorflow-datasets"
        ) from error
    return reading.report(config, None if values.use_data else size, values.repeats)


if __name__ == "__main__":
    define_flags()
    cli.run(main, "benchmark")
