"""Draws the chart of the README: `python chart.py benchmark.json benchmark.svg`, in an environment with matplotlib."""

import json
import statistics
import sys

import matplotlib
from matplotlib import pyplot
from matplotlib.patches import Patch

OURS, RAW, RETURNS, LATE, LOST = "#1f6feb", "#8c959f", "#57a773", "#e3a33b", "#d1495b"
COLOURS = {
    OURS: "redisq",
    RETURNS: "a killed worker's job ran again within 120 s",
    LATE: "it did not within 120 s, but is promised to",
    LOST: "at most once: it is lost",
    RAW: "bare loops, without any promise",
}


def colour(name, system):
    if name == "ours":
        return OURS
    if name == "raw":
        return RAW
    if system["promise"].startswith("at most once"):
        return LOST
    return RETURNS if system["recoveries"] else LATE


def main(source, target):
    with open(source) as file:
        systems = json.load(file)["systems"]
    lines = []
    for name, system in systems.items():
        for row in system["rows"]:
            rates = [drained["rate"] for drained in row["drained"]]
            if rates:
                lines.append((statistics.median(rates), min(rates), max(rates), row["title"], colour(name, system)))
    lines.sort()
    matplotlib.rcParams |= {"svg.hashsalt": "redisq", "svg.fonttype": "none", "font.size": 9}
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.25 * len(lines)), layout="constrained")
    places = range(len(lines))
    spread = [[median - least for median, least, *_ in lines], [most - median for median, _, most, *_ in lines]]
    axes.barh(places, [line[0] for line in lines], color=[line[4] for line in lines], xerr=spread, ecolor="#444444")
    axes.set_yticks(places, [line[3] for line in lines])
    axes.set_xscale("log")
    for place, (median, _, most, *_) in zip(places, lines, strict=True):
        axes.text(most * 1.08, place, f"{median:,.0f}", va="center", fontsize=8)
    axes.margins(y=0.01)
    axes.set_xlim(right=max(line[2] for line in lines) * 2)
    axes.set_xlabel("jobs a second that one worker process drains (logarithmic; median, least, most)")
    axes.spines[["top", "right"]].set_visible(False)
    used = {line[4] for line in lines}
    patches = [Patch(color=each, label=said) for each, said in COLOURS.items() if each in used]
    figure.legend(handles=patches, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
