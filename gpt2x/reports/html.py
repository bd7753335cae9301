"""A comparison as one HTML file."""

from __future__ import annotations

from gpt2x.reports import comparison as tables
from gpt2x.reports.comparison import OF_STATISTICS, Comparison
from gpt2x.reports.curves import AXES, SMOOTHED
from gpt2x.reports.figures import GRID, INK, PALETTE, Figure, color_variable, dashes, figures, to_svg
from gpt2x.reports.page import page, table, words
from gpt2x.reports.trial_pictures import sweep_figure
from gpt2x.reports.trials import trials_of


def to_html(comparison: Comparison) -> str:
    """Return the page; of the jobs of one multirun also their picture."""
    keys = [key(number) for number in range(len(comparison.groups))]
    of_runs = [keys[number] for number in comparison.group_of]
    drawn = figures(comparison)
    parts = [head(comparison), section("Results", table(tables.results(comparison), of_runs)), messages(comparison)]
    if comparison.has_seeds:
        first, *others = [
            f"<h3>{words(each.title)}</h3>{table(each, [keys[number] for number in each.groups])}"
            for each in tables.seeds(comparison)
        ]
        more = f"<details><summary>other values</summary>{''.join(others)}</details>" if others else ""
        parts.append(section("Over seeds", f"<p class=note>{words(OF_STATISTICS)}</p>{first}{more}"))
    parts += [multirun(comparison), curves(comparison, drawn, keys)]
    speed = tables.speed(comparison)
    if speed.rows:
        parts.append(section("Speed and memory", table(speed, of_runs)))
    changes = tables.differences(comparison)
    parts.append(
        section("Configuration", table(changes, of_runs if changes.groups else None, is_sortable=bool(changes.groups)))
    )
    parts += [samples(comparison, of_runs), directories(comparison)]
    return page(f"gpt2x: {comparison.title}", "\n".join(filter(None, parts)), style=rules(comparison, drawn))


def section(title: str, body: str) -> str:
    """Return a part of the page under its title."""
    return f"<section><h2>{words(title)}</h2>{body}</section>"


def key(group: int) -> str:
    """Return a short line in the color of a group."""
    pattern = f' stroke-dasharray="{dashes(group)}"' if dashes(group) else ""
    return (
        f'<svg class=key viewBox="0 0 26 10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" '
        f'stroke="var(--c{group % len(PALETTE)})"{pattern}></line></svg>'
    )


def head(comparison: Comparison) -> str:
    """Return the title, and how many runs ended in which way."""
    states: dict[str, int] = {}
    for run in comparison.runs:
        states[run.status] = states.get(run.status, 0) + 1
    counts = ", ".join(f"{count} {status}" for status, count in states.items())
    baseline = f"; the baseline is {comparison.groups[0].name}" if len(comparison.groups) > 1 else ""
    lines = [f"{counts}; compared by {comparison.metric}{baseline}", comparison.summary]
    return f"<h1>{words(comparison.title)}</h1>" + "".join(f"<p class=soft>{words(line)}</p>" for line in lines if line)


def messages(comparison: Comparison) -> str:
    """Return why runs failed, or what is damaged."""
    lines = [
        f"<dt>{words(name)}</dt><dd class={words(run.status.split()[0])}>{words(run.status)}: {words(run.message)}</dd>"
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        if run.message
    ]
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def curves(comparison: Comparison, drawn: list[Figure], keys: list[str]) -> str:
    """Return the figures: one axis is shown at a time, and each group can be hidden. No script is needed."""
    if not drawn:
        return ""
    used = [axis for axis in AXES if any(figure.axis == axis for figure in drawn)]
    picks = "".join(
        f"<input class=pick type=radio name=axis id=pick-{axis.name}{' checked' if axis == used[0] else ''}>"
        for axis in used
    )
    buttons = "".join(
        f'<label for=pick-{axis.name} title="{words(axis.definition)}">{words(axis.button)}</label>' for axis in used
    )
    legend = "".join(
        f"<label class=l{number}><input type=checkbox id=show-{number} checked>{keys[number]}"
        f"{words(group.name)}</label>"
        for number, group in enumerate(comparison.groups)
    )
    panels = "".join(f"<figure class=on-{figure.axis.name}>{figure.svg}</figure>" for figure in drawn)
    smoothed = ", ".join(sorted(SMOOTHED & {figure.metric for figure in drawn}))
    note = f"{smoothed}: mean of {comparison.width} steps. " if smoothed and comparison.width > 1 else ""
    note += " ".join(f"{axis.label}: {axis.definition}." for axis in used)
    return section(
        "Curves",
        f"{picks}<div class=axes>{buttons}</div><div class=legend>{legend}</div><div class=panels>{panels}</div>"
        f"<p class=note>{words(note)}</p>",
    )


def rules(comparison: Comparison, drawn: list[Figure]) -> str:
    """Return the style by which axes are chosen, and groups hidden or lit."""
    lines = []
    for axis in dict.fromkeys(figure.axis.name for figure in drawn):
        lines.append(f"#pick-{axis}:not(:checked)~.panels .on-{axis}{{display:none}}")
        lines.append(f"#pick-{axis}:checked~.axes label[for=pick-{axis}]{{background:var(--link);color:var(--page)}}")
        lines.append(f"#pick-{axis}:focus-visible~.axes label[for=pick-{axis}]{{outline:2px solid var(--ink)}}")
    for number in range(len(comparison.groups)):
        lines.append(f"body:has(#show-{number}:not(:checked)) .line.g{number}{{display:none}}")
        lines.append(f"body:has(.l{number}:hover) .line:not(.g{number}){{opacity:.12}}")
    return "\n".join(lines)


def multirun(comparison: Comparison) -> str:
    """Return the picture of a multirun if all runs are jobs of one, else ""."""
    sweep_dirs = {run.job.sweep_dir if run.job else "" for run in comparison.runs}
    if len(comparison.runs) < 2 or len(sweep_dirs) > 1 or "" in sweep_dirs:
        return ""
    figure = sweep_figure(trials_of(comparison.runs), INK, GRID, color_variable)
    if figure is None:
        return ""
    svg = to_svg(figure, "sweep-", "best values of the jobs over what they varied")
    return section("Sweep", f"<figure class=sweep>{svg}</figure>")


def samples(comparison: Comparison, keys: list[str]) -> str:
    """Return what the runs wrote, side by side, each at its newest samples."""
    columns = []
    for name, run, mark in zip(comparison.names, comparison.runs, keys, strict=True):
        drawn = run.samples
        if drawn:
            texts = "".join(f"<pre>{words(each)}</pre>" for each in drawn[1])
            columns.append(f"<div><h3>{mark}{words(name)}</h3><p class=note>step {drawn[0]:,}</p>{texts}</div>")
    return section("Samples", f"<div class=samples>{''.join(columns)}</div>") if columns else ""


def directories(comparison: Comparison) -> str:
    """Return where the runs are, and the commands that started them."""
    lines = [
        f"<dt>{words(name)}</dt><dd><code>{words(run.path)}</code>"
        + (f"<br><code>{words(run.command)}</code>" if run.command else "")
        + "</dd>"
        for name, run in zip(comparison.names, comparison.runs, strict=True)
    ]
    return section("Run directories and commands", f"<dl>{''.join(lines)}</dl>")
