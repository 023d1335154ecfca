"""The interactive plots of a report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from hpcasync.report.groups import Group
from hpcasync.report.palette import group_colours
from hpcasync.report.results import Result
from hpcasync.report.run import Run
from hpcasync.runs.records import Record

_FONT = "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_INK, _GRID = "#2b2a28", "#e7e3dd"
_DASHES = ("solid", "dot", "dash", "dashdot", "longdash")


def score_figures(groups: Sequence[Group]) -> dict[str, go.Figure]:
    """BLEU over training time and over target tokens."""
    return {
        "bleu-time": _curves(
            groups, _validations, lambda r: r["wall_seconds"] / 60, "bleu", "training time (min)", "BLEU (validation)"
        ),
        "bleu-tokens": _curves(
            groups, _validations, lambda r: r["target_tokens"] / 1e6, "bleu", "target tokens (million)",
            "BLEU (validation)",
        ),
    }  # fmt: skip


def learning_figures(groups: Sequence[Group]) -> dict[str, go.Figure]:
    """Training loss, validation loss and learning rate over target tokens."""

    def tokens(record: Record) -> float:
        return float(record["target_tokens"]) / 1e6

    title = "target tokens (million)"
    rates = _curves(groups, _updates, tokens, "learning_rate", title, "learning rate")
    rates.update_yaxes(exponentformat="e", rangemode="tozero")
    return {
        "loss-train": _curves(groups, _updates, tokens, "loss", title, "training loss (nats per token)"),
        "loss-valid": _curves(groups, _validations, tokens, "loss", title, "validation loss (nats per token)"),
        "learning-rate": rates,
    }


def throughput_figures(groups: Sequence[Group]) -> dict[str, go.Figure]:
    """Throughput of each group, and over training time."""
    figure = _figure("", "target tokens per second")
    for index, (group, colour) in enumerate(zip(groups, group_colours(groups), strict=True)):
        speeds = [run.tokens_per_second for run in group.runs]
        known = [speed for speed in speeds if speed is not None]
        if known:
            figure.add_bar(
                x=[group.label],
                y=[sum(known) / len(known)],
                legendgroup=str(index),
                marker_color=colour,
                width=0.6,
                text=[f"{sum(known) / len(known):,.0f}"],
                textposition="inside",
                insidetextanchor="middle",
                insidetextfont={"color": "#ffffff"},
                hovertemplate="%{x}<br>%{y:,.0f} tokens/s<extra></extra>",
            )
        if len(known) > 1:
            figure.add_scatter(
                x=[group.label] * len(known), y=known, mode="markers", legendgroup=str(index),
                hovertemplate="%{y:,.0f} tokens/s<extra></extra>",
                marker={"color": "#ffffff", "size": 8, "line": {"color": _INK, "width": 1.5}},
            )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(showgrid=False, showticklabels=False, ticks="")
    figure.update_yaxes(rangemode="tozero", tickformat=",")
    over_time = _curves(
        groups, _updates, lambda r: r["wall_seconds"] / 60, "target_tokens_per_second", "training time (min)",
        "target tokens per second",
    )  # fmt: skip
    over_time.update_yaxes(rangemode="tozero", tickformat=",")
    return {"throughput": figure, "throughput-time": over_time}


def threshold_figure(results: Sequence[Result]) -> go.Figure:
    """Mean time to each BLEU threshold, with the spread over seeds."""
    figure = _figure("BLEU (validation)", "training time to it (min)")
    colours = group_colours([result.group for result in results])
    for index, (result, colour) in enumerate(zip(results, colours, strict=True)):
        points = [(bleu, reached) for bleu, reached in result.reached.items() if reached.seconds is not None]
        seconds = [reached.seconds for _, reached in points if reached.seconds is not None]
        if not points:
            continue
        figure.add_scatter(
            x=[bleu for bleu, _ in points],
            y=[spread.mean / 60 for spread in seconds],
            error_y={"array": [(spread.deviation or 0.0) / 60 for spread in seconds], "thickness": 1, "width": 3},
            customdata=["" if r.ratio is None else f", {r.ratio:.2f} times as fast as sync" for _, r in points],
            name=result.group.label,
            legendgroup=str(index),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 7},
            hovertemplate="BLEU %{x:g}: %{y:.1f} min%{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(rangemode="tozero")
    return figure


def staleness_figure(groups: Sequence[Group]) -> go.Figure:
    """Share of gradients by staleness, over all runs of each group."""
    figure = _figure("staleness (updates)", "share of gradients")
    for index, (group, colour) in enumerate(zip(groups, group_colours(groups), strict=True)):
        counts: dict[int, int] = {}
        for run in group.runs:
            for staleness, number in run.staleness_histogram.items():
                counts[staleness] = counts.get(staleness, 0) + number
        _add_histogram(figure, counts, group.label, colour, str(index))
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(dtick=1 if _largest_x(figure) <= 24 else None, showgrid=False)
    return figure


def worker_staleness_figure(histograms: Mapping[int, Mapping[int, int]]) -> go.Figure:
    """Share of each worker's gradients by staleness, as a heat map."""
    workers = sorted(histograms)
    highest = max((staleness for counts in histograms.values() for staleness in counts), default=0)
    shares = [
        [histograms[worker].get(staleness, 0) / sum(histograms[worker].values()) for staleness in range(highest + 1)]
        for worker in workers
    ]
    figure = _figure("staleness (updates)", "")
    figure.add_heatmap(
        z=shares,
        x=list(range(highest + 1)),
        y=[f"worker {worker}" for worker in workers],
        colorscale=[[0, "#fbfaf8"], [1, "#0067a8"]],
        zmin=0,
        zmax=max(max(row) for row in shares),
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "title": {"text": "share"}},
        hovertemplate="%{y}, staleness %{x}: %{z:.1%}<extra></extra>",
        xgap=2,
        ygap=2,
    )
    figure.update_layout(hovermode="closest", height=120 + 34 * max(3, len(workers)))
    figure.update_xaxes(dtick=1 if highest <= 24 else None, showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed", automargin=True)
    return figure


def _curves(
    groups: Sequence[Group],
    records: Callable[[Run], Sequence[Record]],
    x: Callable[[Record], float],
    key: str,
    x_title: str,
    y_title: str,
) -> go.Figure:
    """A line per run; runs of a group share the colour, and the legendgroup by which the page hides them."""
    figure = _figure(x_title, y_title)
    for index, (group, colour) in enumerate(zip(groups, group_colours(groups), strict=True)):
        for number, run in enumerate(group.runs):
            points = [record for record in records(run) if record.get(key) is not None]
            if not points:
                continue
            figure.add_scatter(
                x=[x(record) for record in points],
                y=[record[key] for record in points],
                name=group.label,
                legendgroup=str(index),
                mode="lines+markers" if len(points) <= 40 else "lines",
                line={"color": colour, "width": 2, "dash": _DASHES[number % len(_DASHES)]},
                marker={"size": 5},
                hovertemplate=f"%{{y:.4~g}}<extra>{group.label}, seed {run.seed}</extra>",
            )
    return figure


def _figure(x_title: str, y_title: str) -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": _GRID, "zeroline": False, "linecolor": "#b9b3aa", "ticks": "outside", "tickcolor": "#b9b3aa",
        "ticklen": 4, "title": {"font": {"size": 13}, "standoff": 10}, "automargin": True,
    }  # fmt: skip
    figure = go.Figure()
    figure.update_layout(
        template="none",
        font={"family": _FONT, "size": 13, "color": _INK},
        margin={"l": 56, "r": 16, "t": 30, "b": 48},
        height=340,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified",
        hoverlabel={"bgcolor": "#ffffff", "bordercolor": "#d5cfc6", "font": {"family": _FONT}},
        showlegend=False,  # the page has one for all of them
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#c4bdb2", "activecolor": "#0067a8"},
        xaxis={**axis, "title": {**axis["title"], "text": x_title}},
        yaxis={**axis, "title": {**axis["title"], "text": y_title}},
    )
    return figure


def _add_histogram(figure: go.Figure, counts: dict[int, int], name: str, colour: str, legendgroup: str) -> None:
    total = sum(counts.values())
    if total:
        keys = sorted(counts)
        figure.add_bar(
            x=keys,
            y=[counts[key] / total for key in keys],
            name=name,
            legendgroup=legendgroup,
            marker_color=colour,
            hovertemplate="%{y:.1%}<extra>%{fullData.name}</extra>",
        )


def _largest_x(figure: go.Figure) -> int:
    return max((max(trace.x) for trace in figure.data), default=0)


def _validations(run: Run) -> Sequence[Record]:
    return run.validations


def _updates(run: Run) -> Sequence[Record]:
    return run.updates
