"""Tables as markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import html
import re
import unicodedata

from resnests.results.tables import Table

_PREAMBLE = r"""\documentclass{article}
% Compiles as it is; to use a table elsewhere, copy it from \begin{table} to \end{table} and load these two packages.
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[margin=1in]{geometry}
\begin{document}
"""
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", "±": r"$\pm$",
    "†": r"\textsuperscript{$\dagger$}", "‡": r"\textsuperscript{$\ddagger$}", "—": "---", "Δ": r"$\Delta$",
    "≠": r"$\neq$", "[": "{[}", '"': "''",
}  # fmt: skip


def markdown(tables: list[Table]) -> str:
    """Tables under headings, with columns padded so that the source reads as a table too."""
    parts = []
    for table in tables:
        lines = [[_markdown_cell(cell) for cell in line] for line in (table.header, *table.rows)]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        body = "\n".join(
            "| "
            + " | ".join(
                cell + " " * (w - _width(cell)) for cell, w in zip(line, widths, strict=True)
            )
            + " |"
            for line in lines
        )
        notes = "\n".join(f"- {note}" for note in table.notes)
        parts.append(
            f"## {table.title}\n\n{table.caption}\n\n{body}\n" + (f"\n{notes}\n" if notes else "")
        )
    return "\n".join(parts)


def latex(tables: list[Table]) -> str:
    """A whole document; each table is shrunk to the line where it is wider."""
    return _PREAMBLE + "\n".join(map(_latex_table, tables)) + "\\end{document}\n"


def html_table(table: Table) -> str:
    """A table with its caption and notes, for a page that has a style of its own."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    body = "\n".join(
        f'<tr><th scope="row">{_html_cell(first)}</th>'
        + "".join(f"<td>{_html_cell(c)}</td>" for c in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f'<p>{html.escape(table.caption)}</p>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def tex(text: str) -> str:
    """`text` with everything that LaTeX would read as a command or cannot set replaced."""
    replaced = (_TEX.get(character, character) for character in text)
    return "".join(piece if piece.isascii() else _ascii(piece) for piece in replaced)


def _latex_table(table: Table) -> str:
    lines = [" & ".join(map(_latex_cell, line)) + r" \\" for line in table.rows]
    notes = "".join(f"{tex(note)}\\par\n" for note in table.notes)
    label = re.sub(r"[^a-z0-9]+", "-", table.key.lower())
    return (
        "\\begin{table}[htbp]\n\\centering\n"
        f"\\caption{{{tex(table.caption)}}}\n\\label{{tab:{label}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{{'l' * len(table.header)}}}\n\\toprule\n"
        + "\n".join(
            [" & ".join(map(tex, table.header)) + r" \\", r"\midrule", *lines, r"\bottomrule"]
        )
        + "\n\\end{tabular}}\n"
        + (f"\\par\\medskip\\raggedright\\footnotesize\n{notes}" if notes else "")
        + "\\end{table}\n"
    )


def _pieces(cell: str) -> list[str]:
    """The lines in which a narrow page sets a cell, such as "WRN-16-8," and "trainer.epochs=10"."""
    return re.split(r"(?<=,) | (?=\[\d+ [a-z])", cell) if len(cell) > 24 else [cell]


def _latex_cell(cell: str) -> str:
    pieces = list(map(tex, _pieces(cell)))
    return (
        pieces[0]
        if len(pieces) == 1
        else "\\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(pieces) + "\\end{tabular}"
    )


def _html_cell(cell: str) -> str:
    return "<br>".join(map(html.escape, _pieces(cell)))


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _ascii(text: str) -> str:
    """What is left of other scripts without their accents; LaTeX's own input encoding is not
    relied on.
    """
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or "?"
