"""Write tables as markdown and LaTeX (booktabs)."""

from __future__ import annotations

import re
import unicodedata

from resnests.results.tables import Table

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$",
    ">": r"$>$", "|": r"$|$", "±": r"$\pm$", "†": r"\textsuperscript{$\dagger$}",
    "‡": r"\textsuperscript{$\ddagger$}", "—": "---", "Δ": r"$\Delta$", "≠": r"$\neq$",
    "[": "{[}", '"': "''", "ε": r"$\varepsilon$", "Σ": r"$\Sigma$", "²": r"\textsuperscript{2}",
}  # fmt: skip


def markdown(tables: list[Table]) -> str:
    """Return tables under headings, with columns padded so that the source reads as a table too."""
    parts = []
    for table in tables:
        lines = [[_markdown_cell(cell) for cell in line] for line in (table.header, *table.rows)]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        parts.append(f"## {table.title}\n\n{table.caption}\n\n")
        for line in lines:
            cells = [c + " " * (w - _width(c)) for c, w in zip(line, widths, strict=True)]
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n" if table.notes else "")
        parts += [f"- {note}\n" for note in table.notes]
        parts.append("\n")
    return "".join(parts[:-1])


def latex(tables: list[Table]) -> str:
    """Return a whole document; each table is shrunk to the line where it is wider."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnests.results"),
        block_start_string="<%",  # braces and % are LaTeX's own
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=tex,  # escapes whatever a template inserts
    )
    environment.filters["pieces"] = pieces
    return environment.get_template("tables.tex.jinja").render(tables=tables)


def tex(text: str) -> str:
    """Return `text` with everything replaced that LaTeX would read as a command or cannot set."""
    composed = unicodedata.normalize("NFC", text)
    replaced = (_TEX.get(character, character) for character in composed)
    return "".join(piece if piece.isascii() else _ascii(piece) for piece in replaced)


def pieces(cell: str) -> list[str]:
    """Return the lines in which a narrow page sets a cell, such as "WRN-16-8," and
    "trainer.epochs=10".
    """
    return re.split(r"(?<=,) | (?=\[\d+ [a-z])", cell) if len(cell) > 24 else [cell]


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _ascii(text: str) -> str:
    """Return what is left of other scripts without their accents, "?" where that is nothing;
    LaTeX's own input encoding is not relied on.
    """
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or "?"
