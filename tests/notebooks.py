"""Run a notebook's cells as they stand, in one namespace, as Jupyter would; write what they showed into it.

    python tests/notebooks.py FILE [--write]

Needs nothing of Jupyter. Of what a cell shows: its prints, and its last expression as text, or a figure as a picture.
"""

import ast
import base64
import contextlib
import io
import json
import linecache
import sys
from pathlib import Path
from typing import Any


def run(file: Path, *, write: bool = False) -> dict[str, Any]:
    """The names that its cells have made. Whatever a cell raises, is raised."""
    notebook = json.loads(file.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    with contextlib.chdir(file.parent):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number += 1
                outputs = _run("".join(cell["source"]), f"<{file.name}, cell {number}>", names)
                for output in outputs:
                    sys.stdout.write("".join(output.get("text", [])))
                cell.update(outputs=outputs, execution_count=number)
    if write:
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return names


def _run(source: str, name: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # nnsight reads the source
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    value = None
    with contextlib.redirect_stdout(said):
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if said.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": said.getvalue().splitlines(keepends=True)})
    # Jupyter draws a figure that pyplot has numbered, and whatever says itself how it looks.
    if hasattr(value, "savefig") and (hasattr(value, "number") or hasattr(value, "_repr_png_")):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80)
        data: dict[str, Any] = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    elif value is not None:
        text = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append({"output_type": "execute_result", "data": text, "metadata": {}, "execution_count": None})
    return outputs


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), write="--write" in sys.argv)
