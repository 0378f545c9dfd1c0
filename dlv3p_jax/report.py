"""One page that says how a run went, or how runs differ.

python -m dlv3p_jax.report --workdir=workdir/quickstart
python -m dlv3p_jax.report --compare workdir/a workdir/b
"""

from absl import app, flags

from dlv3p_jax.runtime import cli


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    flags.DEFINE_string("workdir", None, "Of the run; the report is WORKDIR/report.html.")
    flags.DEFINE_bool(
        "compare",
        False,
        "Compare the two or more runs whose workdirs follow with the first, on the same pictures, in "
        "FIRST/comparison.html.",
    )
    flags.DEFINE_integer(
        "step", None, "Report the evaluations of this step; by default those of the best checkpoint.", lower_bound=0
    )
    flags.DEFINE_string("split", None, "Report the evaluations on this split, in report-SPLIT.html; by default of val.")
    flags.DEFINE_string("output", None, "The file to write instead.")


def main(argv: list[str]) -> None:
    values, workdirs = flags.FLAGS, argv[1:]
    if values.compare:
        if not 2 <= len(workdirs) <= 6 or (values.workdir, values.step, values.split) != (None, None, None):
            raise app.UsageError(
                "--compare takes two to six workdirs and no --workdir, --step or --split: --compare WORKDIR WORKDIR"
            )
    else:
        cli.refuse_words(argv)
        if values.workdir is None:
            raise app.UsageError("give --workdir=WORKDIR, or --compare WORKDIR WORKDIR")
    cli.configure_logging()
    from dlv3p_jax.reporting import (  # JAX and Matplotlib: wrong flags do not wait for them
        comparison_page,
        run_page,
    )

    if values.compare:
        verdict, path = comparison_page.write_comparison(workdirs, values.output)
        print(verdict)
    else:
        path = run_page.write_report(values.workdir, values.output, values.step, values.split)
    print(f"page: {path}", flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main, "report", lambda error: cli.told(error, flags.FLAGS.workdir))
