"""What a training needs on a TPU slice, without one: whether it fits, what it exchanges, how long it takes at best.

    python -m dlv3p_jax.plan --config=configs/cityscapes_r101.py --topology=v5e-16 [--config.KEY=VALUE] [--json=FILE]

compiles the training step and the evaluation with Google's compiler (pip install '.[plan]'), on any CPU.
"""

import pathlib
import signal
import sys

from absl import app, flags, logging

from dlv3p_jax.performance import tpu
from dlv3p_jax.runtime import arguments, cli, files


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_string(
        "topology",
        None,
        "The slice: as it is sold, such as v5e-16, v4-32, v6e-8, or as the compiler names it, v5e:4x4.",
    )
    flags.DEFINE_enum("effort", "low", ("low", "full"), "The compiler's; full takes four to eight times as long.")
    flags.DEFINE_list("size", None, "HEIGHT,WIDTH of the evaluated pictures, where the data set does not tell.")
    flags.DEFINE_bool("all_views", False, "Compile evaluation plain, with flip and with flip + scales too.")
    flags.DEFINE_bool("largest_batch", True, "Compile the step with a second batch, to tell which is the largest.")
    flags.DEFINE_bool("compare_meshes", False, "Compile the step, and it alone, for all sensible meshes.")
    flags.DEFINE_float("price_per_chip_hour", None, "Of the slice, for the cost of the recipe.", lower_bound=0)
    flags.DEFINE_string("json", None, "A file that the report goes to as JSON.")


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.refuse_words(argv)
    for name, example in (("config", "configs/cityscapes_r50.py"), ("topology", "v5e-8")):
        if values[name].value is None:
            raise app.UsageError(f"give --{name}=…, such as --{name}={example}")
    if values.compare_meshes and values.all_views:
        raise app.UsageError("--compare_meshes compiles training steps only: leave --all_views")
    if values.json is not None:
        cli.check_folder("plan", "json", pathlib.Path(values.json).parent)
    cli.configure_logging()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the compiler ends with us
    try:
        piece = tpu.find(values.topology)
        text, report, fits = _plan(values, piece)
        if values.json is not None:
            path = pathlib.Path(values.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, report)
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:  # of the process that compiles
        raise ValueError(str(error)) from error
    print(text, flush=True)
    if not fits:
        sys.exit(2)


def _plan(values, piece: tpu.Slice):
    """(the report as text, the report, whether all of it fits)."""
    from dlv3p_jax.performance import compile_process, plan_text, planned
    from dlv3p_jax.runtime import configuration  # JAX: wrong flags do not wait for it

    config = values.config
    if config.dataset is None:
        config.dataset = "made"
    configuration.check(config)
    compile_process.require_compiler()
    if values.size is not None:
        size = cli.parse_size("size", values.size)
    else:
        size, source = planned.evaluated_size(config)
        logging.info("Evaluation is of %dx%d pixels (height x width): %s", *size, source)
    if values.compare_meshes:
        report = planned.compare_meshes(config, piece, size, values.effort, values.price_per_chip_hour)
        fits = report["meshes"][0]["programs"][0]["fits"]
    else:
        report = planned.report(
            config,
            piece,
            size,
            values.effort,
            all_views=values.all_views,
            largest_batch=values.largest_batch,
            price_per_chip_hour=values.price_per_chip_hour,
        )
        fits = all(program["fits"] for program in report["programs"])
    return plan_text.to_text(report), report, fits


if __name__ == "__main__":
    define_flags()
    cli.run(main, "plan")
