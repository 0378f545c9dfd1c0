"""The page of the public functions and classes, from their docstrings: python -m tests.api_page docs/api.md

The sources are read and not imported, so that this takes no time.
"""

import ast
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
PUBLIC = {  # module: what of it is meant for others
    "inference.segmenter": ["Segmenter"],
    "weights.trained": ["load_checkpoint", "TrainedModel"],
    "models": ["build_model"],
    "models.deeplabv3plus": ["DeepLabV3Plus"],
    "data.colors": ["normalize"],
    "evaluation.views": ["predict_logits", "Views"],
    "evaluation.metrics": ["confusion_matrix", "confusion_matrices", "summarize", "table"],
    "training.loop": ["train_and_evaluate"],
    "training.steps": ["create_train_state", "make_train_step", "jit_train_step", "TrainState"],
    "training.losses": ["cross_entropy", "dice", "lovasz", "weighted"],
    "training.rmi": ["rmi"],
    "training.optim": ["make_optimizer", "make_schedule"],
    "runtime.sharding": ["make_mesh"],
}
HEAD = """# The functions and classes for your own programs

`python -m tests.api_page docs/api.md` made this page from the docstrings. `Segmenter` is in `dlv3p_jax` itself; the
others are imported from the module above them. [This page](fine_tuning.md#from-python-pictures-of-any-source-and-hooks)
has an example that trains.
"""


def signature(name: str, node: ast.FunctionDef) -> str:
    """The arguments and the result as they stand in the source, an argument a line where one line does not hold all."""
    arguments = ast.unparse(node.args)
    if node.args.args and node.args.args[0].arg in ("self", "cls"):
        arguments = arguments.partition(", ")[2]
    text = f"{name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return textwrap.fill(text, 120, subsequent_indent="    ", break_long_words=False)


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its sections as lists, its examples as they are."""
    parts = re.split(r"^(Args|Attributes|Returns|Raises):\n", docstring + "\n", flags=re.MULTILINE)
    lines = [
        re.sub(r"((?:^ {4}.*\n)+)", lambda code: f"```text\n{textwrap.dedent(code[0])}```\n", parts[0], flags=re.M)
    ]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        body = textwrap.dedent(body)
        if title != "Returns":
            body = re.sub(r"^([\w*, .]+): ", r"- `\1`: ", body, flags=re.MULTILINE)
        lines.append(f"**{title}**\n\n{body}")
    return "\n".join(line.rstrip() + "\n" for line in lines)


def entry(name: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    """What the page says of a function, or of a class and how it is called; of the Segmenter, all methods."""
    described = markdown(ast.get_docstring(node))
    if isinstance(node, ast.FunctionDef):
        return f"```text\n{signature(name, node)}\n```\n\n{described}"
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or not ast.get_docstring(method):
            continue
        if method.name == "__call__" or (name == "Segmenter" and not method.name.startswith("_")):
            called = name.lower() if method.name == "__call__" else f"{name}.{method.name}"
            described += f"\n#### {called}\n\n{entry(called, method)}"
    return described


def text() -> str:
    page = [HEAD]
    for module, names in PUBLIC.items():
        path = ROOT / "dlv3p_jax" / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found = {node.name: node for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
        page.append(f"## dlv3p_jax.{module}\n")
        page += [f"### {name}\n\n{entry(name, found[name])}" for name in names]
    return "\n".join(page)


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(text())
