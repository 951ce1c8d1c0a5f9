"""Tables as text: Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable

from critiq_evaluation.report.tables import Cell, Table


def markdown(found: Iterable[Table]) -> str:
    """GitHub's tables; intervals and spreads in brackets, the best figures bold."""
    blocks = []
    for table in found:
        header = _flat_header(table)
        lines = [f"### {table.title}", "", _md_row(header), _md_row(_rule(table, len(header)))]
        lines += [_md_row([_md_cell(cell) for cell in row]) for row in table.rows]
        lines += ["", *(f"- {_md_text(note)}" for note in table.notes)]
        blocks.append("\n".join(lines).rstrip())
    return "\n\n".join(blocks) + "\n"


def latex(found: Iterable[Table]) -> str:
    """Tables for the booktabs package; intervals and spreads are left out, as in the papers."""
    blocks = ["% needs \\usepackage{booktabs}"]
    for table in found:
        columns = len(table.header)
        lines = [
            "\\begin{table}",
            f"\\caption{{{_tex(table.title)}}}",
            "\\centering",
            f"\\begin{{tabular}}{{{'l' * table.labels}{'r' * (columns - table.labels)}}}",
            "\\toprule",
        ]
        if table.spans:
            lines.append(" & ".join(f"\\multicolumn{{{n}}}{{c}}{{{_tex(text)}}}" for text, n in table.spans) + " \\\\")
        lines.append(" & ".join(map(_tex, table.header)) + " \\\\")
        lines.append("\\midrule")
        lines += [" & ".join(_tex_cell(cell) for cell in row) + " \\\\" for row in table.rows]
        lines += ["\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in table.notes), "\\end{table}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _flat_header(table: Table) -> list[str]:
    """Markdown has one row of headings: the spans stand before the first column that they cover."""
    header = list(table.header)
    place = 0
    for text, count in table.spans:
        if text:
            header[place : place + count] = [f"{text}: {name}" for name in header[place : place + count]]
        place += count
    return header


def _rule(table: Table, columns: int) -> list[str]:
    return ["---"] * table.labels + ["---:"] * (columns - table.labels)


def _md_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: Cell) -> str:
    text = _md_text(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"{text} ({cell.detail})" if cell.detail else text


def _md_text(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


_TEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "±": "$\\pm$",
    "<": "$<$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_cell(cell: Cell) -> str:
    return f"\\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text)
