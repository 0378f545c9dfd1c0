"""All commands behind one word: dlv3p VERB [--flags], or python -m dlv3p_jax VERB; --help lists the verbs."""

import difflib
import runpy
import sys

import dlv3p_jax

# verb: (its module, flags that it stands for, what it does)
_VERBS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "prepare": ("dlv3p_jax.prepare", (), "makes a data set, checks it, shows it"),
    "train": ("dlv3p_jax.main", (), "trains a model, with evaluations and a report"),
    "eval": ("dlv3p_jax.main", ("--mode=eval",), "evaluates a checkpoint"),
    "predict": ("dlv3p_jax.predict", (), "labels and overlays of your pictures"),
    "report": ("dlv3p_jax.report", (), "the page of a run, or of several"),
    "export": ("dlv3p_jax.export", (), "StableHLO, SavedModel or ONNX"),
    "demo": ("dlv3p_jax.demo", (), "a local page to try a model on"),
    "reproduce": ("dlv3p_jax.reproduce", (), "a published row, measured here"),
    "convert_paddle": ("dlv3p_jax.convert_paddle", (), "PaddleSeg's weights in, and back"),
    "convert_mmseg": ("dlv3p_jax.convert_mmseg", (), "MMSegmentation's weights in, and back"),
    "convert_timm": ("dlv3p_jax.convert_timm", (), "timm's backbones in"),
    "benchmark": ("dlv3p_jax.benchmark", (), "how fast this machine is"),
    "plan": ("dlv3p_jax.plan", (), "what a TPU slice would need"),
    "main": ("dlv3p_jax.main", (), "train, or with --mode=eval evaluate"),
}


def main() -> None:
    """Runs the command that the first argument names, as `python -m` would."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h", "help"):
        width = max(map(len, _VERBS))
        rows = (f"  {verb:{width}}  {what}" for verb, (_, _, what) in _VERBS.items())
        print("dlv3p VERB [--flags]", "", *rows, "", "dlv3p VERB --help lists a verb's flags.", sep="\n")
    elif verb == "--version":
        print(f"dlv3p_jax {dlv3p_jax.__version__}")
    elif verb in _VERBS:
        module, flags, _ = _VERBS[verb]
        sys.argv[1:] = [*flags, *sys.argv[2:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_VERBS)}"
        sys.exit(f"dlv3p: there is no command {verb!r}; {hint}")


if __name__ == "__main__":
    main()
