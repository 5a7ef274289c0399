"""The reliability diagram of a calibration, as SVG: what scores promise against what is so."""

from __future__ import annotations

from html import escape

from core.calibration import Reliability

_SIDE, _MARGIN, _HEAD, _FOOT = 320, 56, 44, 92


def reliability_figure(found: Reliability, caption: str) -> str:
    """Draw the share of matches in each bin of the score; the area of a dot grows with its matches.

    Args:
        found: What to draw.
        caption: One line above it.

    Returns:
        An SVG document that needs no style sheet, font or script.
    """
    width, height = _SIDE + 2 * _MARGIN, _SIDE + _HEAD + _FOOT

    def at(x: float, y: float) -> tuple[float, float]:
        return _MARGIN + _SIDE * x, _HEAD + _SIDE * (1 - y)

    left, bottom = at(0, 0)
    right, top = at(1, 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(caption)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{width / 2}" y="22" text-anchor="middle" font-weight="600">{escape(caption)}</text>',
        f'<rect x="{left}" y="{top}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#888"/>',
        f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{top}" stroke="#888" stroke-dasharray="4 4"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(tick, tick)
        lines += [
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#444">{tick:g}</text>',
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{tick:g}</text>',
        ]
    points = [at(float(s), float(o)) for s, o in zip(found.score, found.observed, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#0b6e99" stroke-width="2"/>')
    for (x, y), score, share, pairs in zip(
        points, found.score, found.observed, found.pairs, strict=True
    ):
        told = f"score {score:.3f}, true {share:.3f}, {pairs:,} pairs"
        radius = (
            3 + 6 * float(share * pairs / max(1.0, (found.observed * found.pairs).max())) ** 0.5
        )
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#0b6e99" fill-opacity=".7">'
            f"<title>{told}</title></circle>"
        )
    middle = _HEAD + _SIDE / 2
    lines += [
        f'<text x="{width / 2}" y="{bottom + 40}" text-anchor="middle">score of a label’s text</text>',
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">'
        "share of pairs in which it is true</text>",
        f'<text x="{width / 2}" y="{bottom + 66}" text-anchor="middle" fill="#444">mean difference '
        f"{found.error:.4f}; where the score is at least .1, {found.match_error:.3f}</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
