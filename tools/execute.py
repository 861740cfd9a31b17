"""Runs a chapter with papermill: `execute.py CHAPTER OUT PARAMETERS [--prose]`.

With --prose (nothing but the chapter has changed) and the same code as last time, only its prose is replaced in OUT.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat

INJECTED = "injected-parameters"  # papermill's tag


def code(cells) -> list[tuple[str, list[str]]]:
    """Source and tags of each code cell, but for papermill's own."""
    found = [(c.source, c.metadata.get("tags", [])) for c in cells if c.cell_type == "code"]
    return [(source, tags) for source, tags in found if INJECTED not in tags]


def new_prose(chapter: Path, out: Path) -> bool:
    """Whether OUT now holds the chapter's prose around the code and outputs that it had."""
    if not out.exists():
        return False
    new, old = (nbformat.read(path, as_version=4) for path in (chapter, out))
    ran = [c for c in old.cells if c.cell_type == "code"]
    failed = any(o.output_type == "error" for c in ran for o in c.outputs)
    if failed or code(new.cells) != code(old.cells):
        return False
    cells, ran = [], iter(ran)
    for cell in new.cells:
        cells.append(next(ran) if cell.cell_type == "code" else cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(next(ran))
    old.cells = cells
    nbformat.write(old, out)
    return True


def name_the_folded(out: Path, profile: str) -> None:
    """Folded cells are called by what they do: the figure that one draws, or what it defines. The one that papermill has put in
    is folded, too."""
    notebook = nbformat.read(out, as_version=4)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if INJECTED in tags:
            cell.metadata["tags"], name = [INJECTED, "hide-input"], f"Parameters of the profile {profile}"
        elif cell.cell_type == "code" and "hide-input" in tags and "mystnb" not in cell.metadata:
            name = called(cell.source, any("figure" in o.get("metadata", {}) for o in cell.outputs))
        else:
            continue
        cell.metadata["mystnb"] = {"code_prompt_show": name, "code_prompt_hide": name}
    nbformat.write(notebook, out)


def called(source: str, has_drawn: bool = True) -> str:
    """What a folded cell is called in the page: by what it shows, else by what it defines."""
    drawn = re.findall(r'pages\.caption\(\s*"([^"]+)"', source)
    if drawn and has_drawn:
        return f"Code of {', '.join(drawn)}"
    for call, what in (
        ("pages.say(", "these words"),
        ("pages.table(", "this table"),
        ("explorers.", "this explorer"),
    ):
        if call in source:
            return f"Code of {what}"
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic, or a cell that fails
        return "Code"
    names = [s.name for s in statements if isinstance(s, ast.FunctionDef)]
    if not names:
        targets = [t for s in statements if isinstance(s, ast.Assign) for t in s.targets]
        found = [
            n
            for t in targets
            for n in ast.walk(t)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        ]
        names = [n.id for n in sorted(found, key=lambda n: (n.lineno, n.col_offset))]
    if names := [name for name in dict.fromkeys(names) if name != "_"]:
        return f"Code: {', '.join(names[:4])}"
    return "Code"


def name_what_died(out: Path) -> None:
    """A killed kernel leaves no error in the notebook: the last cell that it began gets one."""
    notebook = nbformat.read(out, as_version=4)
    code_cells = [c for c in notebook.cells if c.cell_type == "code"]
    # not by execution_count: a kernel may die before it has told that
    began = [c for c in code_cells if c.metadata.get("papermill", {}).get("start_time")]
    if began and not any(o.output_type == "error" for c in began for o in c.outputs):
        began[-1].outputs.append(
            nbformat.v4.new_output("error", ename="DeadKernelError", evalue="the kernel died")
        )
        nbformat.write(notebook, out)


def say_that_it_never_began(chapter: Path, out: Path, parameters: Path) -> None:
    """Papermill writes nothing where it cannot read the parameters: the chapter's first code gets an error that says so."""
    notebook = nbformat.read(chapter, as_version=4)
    first = next(c for c in notebook.cells if c.cell_type == "code")
    why = f"papermill could not begin; what it says of {parameters} stands above"
    first.outputs = [nbformat.v4.new_output("error", ename="PapermillError", evalue=why)]
    nbformat.write(notebook, out)


if __name__ == "__main__":
    chapter, out, parameters = map(Path, sys.argv[1:4])
    if sys.argv[4:] == ["--prose"] and new_prose(chapter, out):
        sys.exit()
    papermill = Path(sys.executable).with_name("papermill")
    out.unlink(missing_ok=True)  # or what an earlier call left would be taken for this one's
    status = subprocess.run([papermill, chapter, out, "-f", parameters], check=False).returncode
    if not out.exists():
        say_that_it_never_began(chapter, out, parameters)
    else:
        name_the_folded(out, parameters.parent.name)
    if status:
        name_what_died(out)
    sys.exit(status)
