"""Draw the imports between the project's parts: python -m benchmarks.imports writes docs/imports.svg."""

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "imports.svg"
PLUGIN = "vpo_plugin"
ROW, LEFT, WIDTH, ARCS = 44, 12, 250, 430
COLOURS = ("#3b6ea5", "#b5651d", "#4f8a4f", "#8a4f7d", "#a53b3b", "#55606e")


def layers() -> list[list[str]]:
    """The parts of the project in pyproject.toml's order: each may only import later ones."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    outer, inner = ([row.split(" | ") for row in contract["layers"]] for contract in contracts)
    return [*outer[:-1], *([f"{PLUGIN}.{name}" for name in row] for row in inner)]


def arcs(rows: list[list[str]]) -> list[tuple[int, int]]:
    """Pairs (importer, imported) of rows with an import between them, also inside functions."""
    graph = grimp.build_graph(*{name.split(".")[0] for row in rows for name in row}, cache_dir=None)
    row_of = {
        module: i for i, row in enumerate(rows) for name in row for module in (name, *graph.find_descendants(name))
    }
    found = set()
    for importer, i in row_of.items():
        imported = {row_of[module] for module in graph.find_modules_directly_imported_by(importer) if module in row_of}
        found |= {(i, j) for j in imported if j != i}
    return sorted(found)


def draw() -> str:
    """The picture as SVG: a box per row and an arc per import; all arcs lead down."""
    rows = layers()
    height = ROW * len(rows) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + ARCS} {height}" font-family="sans-serif"'
        ' font-size="13" role="img"><title>The imports between the parts of the project</title>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        "<defs>",
        *(
            f'<marker id="head{i}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
            for i, colour in enumerate(COLOURS)
        ),
        "</defs>",
    ]
    for i, row in enumerate(rows):
        inside = row[0].startswith(PLUGIN)
        lines.append(
            f'<rect x="{LEFT}" y="{ROW * i + 8}" width="{WIDTH}" height="{ROW - 14}" rx="4" stroke="#8a94a0"'
            f' fill="{"#eef3f8" if inside else "#f6f1e8"}"/>'
        )
        text = ", ".join(name.replace(".", "/") if name == row[0] else name.removeprefix(f"{PLUGIN}.") for name in row)
        lines.append(f'<text x="{LEFT + 10}" y="{ROW * i + 27}" fill="#222">{text}</text>')
    right = LEFT + WIDTH
    for i, j in arcs(rows):
        start, end = ROW * i + 18 + 8 * (i < j), ROW * j + 20
        reach = right + ARCS * abs(j - i) / len(rows) * 1.25
        k = i % len(COLOURS)
        lines.append(
            f'<path d="M{right} {start}C{reach:.0f} {start} {reach:.0f} {end} {right + 2} {end}" fill="none"'
            f' stroke="{COLOURS[k]}" stroke-width="1.4" marker-end="url(#head{k})"/>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(f"Written: {PICTURE.relative_to(ROOT)}")
