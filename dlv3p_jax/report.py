"""One page that says how a run went, or how two runs differ.

python -m dlv3p_jax.report --workdir=workdir/quickstart
python -m dlv3p_jax.report --compare workdir/a workdir/b
"""

import sys

from absl import app, flags, logging

from dlv3p_jax import commands

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; the report is WORKDIR/report.html.")
_COMPARE = flags.DEFINE_bool(
    "compare", False, "Compare the two runs whose workdirs follow, on the same pictures, in comparison.html."
)
_STEP = flags.DEFINE_integer(
    "step", None, "Report the evaluations of this step; by default those of the best checkpoint.", lower_bound=0
)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write instead.")


def main(argv: list[str]) -> None:
    workdirs = argv[1:]
    if _COMPARE.value:
        if len(workdirs) != 2 or _WORKDIR.value is not None or _STEP.value is not None:
            raise app.UsageError("--compare takes two workdirs and no --workdir or --step: --compare WORKDIR WORKDIR")
    else:
        commands.refuse_words(argv)
        if _WORKDIR.value is None:
            raise app.UsageError("give --workdir=WORKDIR, or --compare WORKDIR WORKDIR")
    try:
        from dlv3p_jax import comparing, reporting  # JAX and Matplotlib: wrong flags do not wait for them

        if _COMPARE.value:
            verdict, path = comparing.write_comparison(*workdirs, _OUTPUT.value or "comparison.html")
            print(verdict)
        else:
            path = reporting.write_report(_WORKDIR.value, _OUTPUT.value, _STEP.value)
    except (ValueError, OSError) as error:
        logging.debug("The traceback of the error below", exc_info=True)
        sys.exit(f"report: {error}")
    print(f"page: {path}", flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=commands.make_flags_parser("report"))
