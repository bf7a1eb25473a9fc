"""The tables and plots of history.md: `python docs/history.py` writes both pages and docs/img/history-*.svg.

Everything is computed from `alexnet.ablation.history`. The texts of the pages are in history.en.md.in and
history.zh-CN.md.in beside this file, in which names in braces stand for tables and numbers.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from alexnet.ablation.history import SISTERS, Run2012, runs_2012, sister_spread
from alexnet.plots.style import THEMES, rc_params

DOCS = Path(__file__).parent
COLORS = {
    "same network": "#0072B2", "forerunner": "#56B4E9", "variation": "#009E73", "ablation": "#D55E00",
    "pretrained": "#CC79A7", "continued": "#E69F00",
}  # fmt: skip
RATES = {0.01: "#0072B2", 1e-3: "#56B4E9", 1e-4: "#E69F00", 1e-5: "#F0E442"}
PAGES = {"history.en.md.in": "history.md", "history.zh-CN.md.in": "history.zh-CN.md"}
KINDS_ZH = {
    "same network": "同一网络", "forerunner": "前身", "variation": "变体", "ablation": "消融", "pretrained": "预训练",
    "other data": "其他数据", "continued": "续训",
}  # fmt: skip


def schedules() -> Figure:
    """The learning rates of the runs that were changed by hand: one bar per run, one color per rate."""
    runs = [run for run in runs_2012() if run.changes and run.kind != "other data"]
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(runs) + 1))
    for row, run in enumerate(runs):
        end = run.stopped or 0
        steps = [(1, run.start or 0.0), *((c.epoch, c.lr) for c in run.changes if c.lr is not None and not c.layers)]
        for (first, rate), (last, _) in zip(steps, [*steps[1:], (end, 0.0)], strict=True):
            axes.barh(row, last - first, left=first, height=0.7, color=RATES[rate])
        frozen = [c.epoch for c in run.changes if c.layers and c.lr == 0]
        axes.plot(frozen[:1], [row] * len(frozen[:1]), "k|", ms=11, mew=2)
        quiet = [c.epoch for c in run.changes if c.noise == 0]
        axes.plot(quiet, [row] * len(quiet), "ko", ms=4)
    axes.set_yticks(range(len(runs)), [run.run for run in runs], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="epoch", xlim=(0, 137))
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in RATES.values()]
    handles += [plt.Line2D([], [], color="k", marker=m, ls="", ms=s, mew=2) for m, s in (("|", 11), ("o", 4))]
    names = [*(f"rate {rate:g}" for rate in RATES), "conv1 frozen", "color noise off"]
    axes.legend(handles, names, fontsize=9, loc="lower right")
    return figure


def errors() -> Figure:
    """Top-1 errors by ten views on ILSVRC-2012, with mean and deviation of the sisters."""
    runs = [(run, result) for run in runs_2012() if (result := run.published)]
    spread = sister_spread()
    figure, axes = plt.subplots(figsize=(8, 0.22 * len(runs) + 1))
    low, high = (100 * (spread.mean + sign * spread.deviation) for sign in (-1, 1))
    axes.axvspan(low, high, color="#dddddd", zorder=0)
    axes.axvline(100 * spread.mean, color="#999999", lw=1, zorder=0)
    for row, (run, result) in enumerate(runs):
        axes.plot(100 * result.top1_error, row, "o", color=COLORS[run.kind])
    axes.set_yticks(range(len(runs)), [run.run for run, _ in runs], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="top-1 error in %, ten views, validation images of ILSVRC-2012")
    handles = [plt.Line2D([], [], color=color, marker="o", ls="") for color in COLORS.values()]
    axes.legend(handles, list(COLORS), fontsize=9)
    return figure


def table(chinese: bool) -> str:
    """Return a Markdown table of all results."""
    rows = [
        "| 编号 | 种类 | 训练集 | 测试 | top-1 / top-5 错误率 | 备注 |"
        if chinese
        else "| run | kind | trained on | tested on | top-1 / top-5 error | notes |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs_2012():
        for result in run.results:
            rows.append(_row(run, result.trained_on, _tested(result.split, result.views, chinese), chinese) % (
                100 * result.top1_error, 100 * result.top5_error,
            ))  # fmt: skip
    return "\n".join(rows)


def _row(run: Run2012, trained_on: str, tested: str, chinese: bool) -> str:
    kind = KINDS_ZH[run.kind] if chinese else run.kind
    parts = (run.note_zh, run.schedule_zh) if chinese else (run.note, run.schedule)
    notes = ("；" if chinese else "; ").join(filter(None, parts)).replace("%", "%%")
    return f"| {run.run} | {kind} | {trained_on} | {tested} | %.2f / %.2f %% | {notes} |"


def _tested(split: str | None, views: int | None, chinese: bool) -> str:
    if split is None:
        return "未注明" if chinese else "not stated"
    place = {"validation": "验证集", "test": "测试集"}[split] if chinese else split
    how = ("十视图" if views == 10 else "中心裁剪") if chinese else ("ten views" if views == 10 else "center crop")
    return f"{place}，{how}" if chinese else f"{place}, {how}"


def numbers() -> dict[str, str]:
    """Return the numbers of the text: spreads, and differences from run 145 in points and in deviations."""
    spread, top5, same = sister_spread(), sister_spread("top5_error"), sister_spread(kinds=SISTERS[:1])
    errors = {run.run: result for run in runs_2012() if (result := run.published)}
    found = {
        "n": str(len(spread.runs)),
        "low": f"{100 * spread.lowest:.2f}",
        "high": f"{100 * spread.highest:.2f}",
        "mean": f"{100 * spread.mean:.2f}",
        "sd": f"{100 * spread.deviation:.2f}",
        "sd5": f"{100 * top5.deviation:.2f}",
        "sd_pair": f"{100 * spread.deviation * 2**0.5:.2f}",
        "same_n": str(len(same.runs)),
        "same_sd": f"{100 * same.deviation:.2f}",
    }
    for run in ("147", "148", "150"):
        difference = 100 * (errors[run].top1_error - errors["145"].top1_error)
        found[f"d{run}"] = f"{difference:.2f}"
        found[f"z{run}"] = f"{difference / (100 * spread.deviation * 2**0.5):.1f}"
    both, half = (next(r for r in runs_2012() if r.run == name).results[0] for name in ("145-2010", "145-half"))
    difference = 100 * (half.top1_error - both.top1_error)
    found["dhalf"] = f"{difference:.2f}"
    found["zhalf"] = f"{difference / (100 * spread.deviation * 2**0.5):.1f}"
    return found


def page(template: str) -> str:
    """Return the page that is made from a template."""
    text = (DOCS / template).read_text(encoding="utf-8")
    return text.format(table=table("zh" in template), **numbers())


if __name__ == "__main__":
    mpl.rcParams.update({**rc_params(THEMES["light"]), "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 9})
    for name, figure in (("schedules", schedules()), ("errors", errors())):
        figure.tight_layout()
        figure.savefig(DOCS / f"img/history-{name}.svg", metadata={"Date": None}, facecolor="white")
    for template, name in PAGES.items():
        (DOCS / name).write_text(page(template), encoding="utf-8")
