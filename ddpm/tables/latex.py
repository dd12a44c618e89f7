"""Tables as LaTeX (booktabs), in plain ASCII: what any engine sets."""

import pandas as pd

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
SYMBOLS = {
    "ε": r"$\varepsilon$",
    "ϵ": r"$\epsilon$",
    "η": r"$\eta$",
    "θ": r"$\theta$",
    "σ̂": r"$\hat{\sigma}$",
    "σ": r"$\sigma$",
    "µ̃": r"$\tilde{\mu}$",
    "µ": r"$\mu$",
    "Σ": r"$\Sigma$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "÷": r"$\div$",
    "×": r"$\times$",
    "−": "$-$",
    "‖": r"$\Vert$",
    "²": "$^2$",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "–": "--",
}


def escaped(text: str) -> str:
    """Text as LaTeX shows it."""
    out = "".join(SPECIAL.get(character, character) for character in text)
    for symbol, command in sorted(SYMBOLS.items(), key=lambda item: -len(item[0])):
        out = out.replace(symbol, command)
    return out


def latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A table environment: the first column left, all others right; it needs the package booktabs."""
    lines = [list(map(str, frame.columns)), *([str(value) for value in row] for row in frame.itertuples(index=False))]
    head, *rows = (" & ".join(map(escaped, line)) + r" \\" for line in lines)
    body = "\n".join(f"    {row}" for row in rows)
    return (
        "\\begin{table}\n  \\centering\n"
        f"  \\caption{{{escaped(caption)}}}\n  \\label{{tab:{label}}}\n"
        f"  \\begin{{tabular}}{{l{'r' * (len(frame.columns) - 1)}}}\n    \\toprule\n"
        f"    {head}\n    \\midrule\n{body}\n    \\bottomrule\n  \\end{{tabular}}\n\\end{{table}}\n"
    )
