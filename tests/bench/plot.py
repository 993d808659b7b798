"""The goals as bars, in SVG, with nothing but the standard library."""
from xml.sax.saxutils import escape

from report import number

LEFT, BAR, VALUE, ROW, TOP = 430, 420, 200, 22, 96
FARTHEST = 3.0  # goals' worths that the width of the bars stands for
MET, MISSED, INK, FAINT = "#2f7d5b", "#c2542d", "#22272e", "#8b949e"


def reached(judged):
    """How much of the goal: 1 is the mark, more is better, whichever the sense is."""
    goal = judged.goal
    if goal.sense == "≥":
        return max(judged.value, 0) / goal.limit
    return goal.limit / judged.value if judged.value > 0 else FARTHEST


def text(x, y, what, anchor="start", size=12, color=INK, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{color}" font-weight="{weight}">{escape(what)}</text>')


def row(judged, y):
    share = reached(judged)
    width = min(share, FARTHEST) / FARTHEST * BAR
    color = MET if judged.verdict == "met" else MISSED
    goal = judged.goal
    yield text(LEFT - 10, y + 14, goal.text, "end")
    yield f'<rect x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="13" rx="2" fill="{color}"/>'
    if share > FARTHEST:  # goes on
        yield (f'<path d="M{LEFT + BAR - 14} {y + 3}l-5 15m10 -15l-5 15" stroke="white" '
               f'stroke-width="2"/>')
    yield text(LEFT + BAR + 12, y + 14, number(judged.value, goal.unit), weight="bold", color=color)
    yield text(LEFT + BAR + VALUE - 8, y + 14, f"{goal.sense} {number(goal.limit, goal.unit)}",
               "end", color=FAINT)


def write(path, all_judged, title):
    rows, y = [], TOP
    group = None
    for judged in (j for j in all_judged if j.goal.limit is not None):
        if judged.goal.group != group:
            group = judged.goal.group
            y += 14
            rows.append(text(16, y + 14, group, weight="bold", size=13))
            y += ROW
        rows.extend(row(judged, y))
        y += ROW
    width, height = LEFT + BAR + VALUE + 8, y + 20
    mark = LEFT + BAR / FARTHEST
    lines = title.split("\n")
    with open(path, "w", encoding="utf-8") as out:
        out.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                  f'viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
                  f'<rect width="{width}" height="{height}" fill="white"/>\n')
        parts = [text(16, 26, "kvfs: what was measured, against its goals", size=17, weight="bold")]
        parts += [text(16, 46 + 16 * i, line, color=FAINT) for i, line in enumerate(lines)]
        parts.append(text(mark, TOP - 4, "goal", "middle", color=INK, weight="bold"))
        parts.append(text(LEFT + BAR, TOP - 4, "longer is better", "end", color=FAINT))
        parts += rows
        parts.append(f'<path d="M{mark:.1f} {TOP + 2}V{y + 6}" stroke="{INK}" stroke-width="1.5" '
                     f'stroke-dasharray="4 3"/>')
        out.write("\n".join(parts) + "\n</svg>\n")
