"""The tables of claims in reproduction.md and reproduction.zh-CN.md, from the results in docs/results/claims, and the
table on the towers' colors, from docs/results/tower-colors.json.

`python docs/reproduction.py` rewrites what stands between the marks in both pages. `python docs/reproduction.py DIR`
first takes over the results of `alexnet ablate … --out DIR`: JSON to docs/results/claims, plots to docs/img, and each
finished run (recipe, epochs, summary, environment; not its weights) as a line of docs/results/arms/ARM.jsonl.
`python docs/reproduction.py restore DIR` writes these runs to DIR again; `alexnet ablate` with the same --data and
`--out DIR` finds them, since it names runs by their settings, and trains only what is missing.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from alexnet.ablation.results import format_value
from alexnet.ablation.table import claims_table, read_results
from alexnet.files import read_json, write_json
from alexnet.run_dir import Run

DOCS = Path(__file__).resolve().parent
RESULTS, IMAGES = DOCS / "results" / "claims", DOCS / "img"
ARMS = DOCS / "results" / "arms"
TOWERS = DOCS / "results" / "tower-colors.json"  # of benchmarks/tower_colors.py
PAGES = {"en": DOCS / "reproduction.md", "zh": DOCS / "reproduction.zh-CN.md"}

HEADS = {
    "en": (
        ("claim", "first arm", "second arm", "difference", "95 % interval", "pairs", "p", "corrected p", "verdict",
         "min"),
        ("claim", "measured", "paper", "log of the 2012 code", "in deviations of a difference"),
        ("network", "runs", "more colored half", "other half", "difference", "of random halves", "p below .05",
         "combined p"),
    ),
    "zh": (
        ("论断", "第一组", "第二组", "差值", "95 % 区间", "配对数", "p", "校正后的 p", "结论", "分钟"),
        ("论断", "测量的量", "论文", "2012 年代码的日志", "差值是标准差的几倍"),
        ("网络", "训练次数", "颜色较强的一半", "另一半", "差值", "随机两半的差值", "p 小于 .05 的次数", "合并的 p"),
    ),
}  # fmt: skip
CHINESE = {  # of verdicts, measures, arms and published figures
    "supports": "支持", "leans": "倾向支持", "cannot tell": "无法判断", "leans against": "倾向反对",
    "contradicts": "反对", "not tested": "未检验", "not measured": "未测量",
    "at least": "至少", "to": "至", "epochs": "轮",
    "test top-1": "测试集 top-1", "training error": "训练误差", "gap": "训练与测试 top-1 之差",
    "epochs to 25 % training error": "训练误差降到 25 % 所需的轮数",
    "no normalization": "无归一化", "batch norm": "批归一化", "no dropout": "无 dropout", "crop and flip": "裁剪与翻转",
    "unchanged images": "原图", "two towers": "双塔", "one tower": "单塔", "3×3, stride 2": "3×3，步幅 2",
    "2×2, stride 2": "2×2，步幅 2", "conv3 reads both": "conv3 读取双塔", "conv3 reads one": "conv3 只读本塔",
    "PCA noise .1": "PCA 噪声 .1", "no color noise": "无颜色噪声", "maximum": "最大值", "average": "平均值",
    "momentum .9": "动量 .9", "no momentum": "无动量", "five convolutions": "五个卷积层", "without conv4": "去掉 conv4",
    "ten views": "十个视图", "one view": "一个视图", "HOG + linear SVM": "HOG + 线性 SVM", "base": "基准",
    "base, other seeds": "基准，另一组种子",
    "1.4 / 1.2 points of error; on CIFAR-10 13 % to 11 %": "错误率相差 1.4 / 1.2 个百分点；CIFAR-10 由 13 % 降到 11 %",
    "run 148, which leaves out the spatial norm too: +1.37 / +1.15": "148 号（同时去掉空间归一化）：+1.37 / +1.15",
    "no figure for AlexNet": "没有针对 AlexNet 的数字", "no figure": "没有数字",
    "two towers, trained": "双塔，训练后", "two towers, initial weights": "双塔，初始权重",
    "no towers, trained": "无塔，训练后",
    "\"substantial overfitting\" without it, no figure": "称不用它会严重过拟合，没有数字",
    "1.7 / 1.2 points of error": "错误率相差 1.7 / 1.2 个百分点",
    "run 145-half: +1.70 / +1.23": "145-half 号：+1.70 / +1.23",
    ".4 / .3 points of error": "错误率相差 .4 / .3 个百分点",
    "run 147, whose noise is never switched off: +.39 / +.30": "147 号（噪声始终没有关闭）：+.39 / +.30",
    "six times fewer epochs (CIFAR-10, four layers)": "所需轮数为六分之一（CIFAR-10，四层网络）",
    "run 150, which disconnects fc6 and fc7 too: +1.16 / +1.12": "150 号（fc6 与 fc7 也断开）：+1.16 / +1.12",
    "over 1 point of top-1 error": "top-1 错误率相差超过 1 个百分点",
    "\"it reduces the model's training error\", no figure": "称它降低训练误差，没有数字",
    "about 2 points of top-1 error for any middle layer": "去掉任一中间层，top-1 错误率相差约 2 个百分点",
    "39.0 / 18.3 error with one view, 37.5 / 17.0 with ten (ILSVRC-10)":
        "错误率：一个视图 39.0 / 18.3，十个视图 37.5 / 17.0（ILSVRC-10）",
    "run 145-2010: .390247 / .182953 to .374727 / .169987": "145-2010 号：由 .390247 / .182953 到 .374727 / .169987",
    "37.5 / 17.0 error against 45.7 / 25.7 of SIFT and Fisher vectors":
        "错误率 37.5 / 17.0，SIFT 与 Fisher 向量为 45.7 / 25.7",
}  # fmt: skip
MEASURES = {
    "top1": "test top-1", "train_error": "training error", "gap": "gap", "epochs": "epochs to 25 % training error",
}  # fmt: skip
REASONS = {
    "en": "**{claim}** gives no verdict: {reason}.",
    "zh": "**{claim}** 没有结论：训练不足，或有一组没有学会（{reason}）。",
}
VERDICT = {"en": "Verdict: **{}**.", "zh": "结论：**{}**。"}
NONE = "–"


def _say(text: str, language: str) -> str:
    return CHINESE.get(text, text) if language == "zh" else text


def blocks(language: str, results: dict[str, dict[str, Any]], towers: dict[str, Any] | None = None) -> dict[str, str]:
    """Return what stands between the marks of a page, by mark; `towers` are the results on the towers' colors."""

    def say(text: str) -> str:
        return _say(text, language)

    def amount(value: float | None, measure: str, sign: bool = True) -> str:
        return NONE if value is None else format_value(value, measure, sign).replace("epochs", say("epochs"))

    def arm(found: dict[str, Any], measure: str) -> str:
        if found["mean"] is None:
            return say(found["name"])
        bound = "" if found["reached"] else f"{say('at least')} "
        return f"{say(found['name'])} {bound}{amount(found['mean'], measure, sign=False)}"

    def small(p: float | None) -> str:
        return NONE if p is None else f"{p:.2g}"

    rows = claims_table(results)
    tested, published = [], []
    for row in rows:
        measure = row["measure"]
        interval = f" {say('to')} ".join(amount(v, measure) for v in row["interval"] or ()) or NONE
        minutes = f"{row['seconds'] / 60:.0f}" if row["pairs"] else NONE
        tested.append((
            f"`{row['claim']}`", *(arm(found, measure) for found in row["arms"]), amount(row["difference"], measure),
            interval, str(row["pairs"]), small(row["p"]), small(row["p_corrected"]), say(row["verdict"]), minutes,
        ))  # fmt: skip
        deviations = NONE if row["deviations"] is None else f"{row['deviations']:.1f}"
        published.append((
            f"`{row['claim']}`", say(MEASURES[measure]), say(row["figure"]), say(row["log"]) or NONE, deviations
        ))  # fmt: skip
    reasons = [REASONS[language].format(**row) for row in rows if row["reason"]]
    images = [f"![{name}](img/ablate-{name}.svg)" for name in results]
    return {
        "claims": "\n\n".join([_table(HEADS[language][0], tested), *reasons]),
        "published": _table(HEADS[language][1], published),
        "plots": "\n".join(images),
        "towers": _towers(language, towers),
    }


def _towers(language: str, found: dict[str, Any] | None) -> str:
    """Return table, verdict and plot of the towers' color indices, or that they were not measured."""
    if found is None:
        return VERDICT[language].format(_say("not measured", language))
    rows = []
    for name, group in found["groups"].items():
        runs = group["runs"]
        cells = [_say(name, language), str(len(runs)), *[NONE] * 6]
        if runs:
            columns = (
                [max(run["means"]) for run in runs], [min(run["means"]) for run in runs],
                [run["difference"] for run in runs], [run["of_random_halves"] for run in runs],
            )  # fmt: skip
            cells[2:] = [*(f"{statistics.fmean(column):.2f}" for column in columns),
                         str(group["significant"]), f"{group['p']:.2g}"]  # fmt: skip
        rows.append(tuple(cells))
    sentence = VERDICT[language].format(_say(found["verdict"], language))
    return "\n\n".join([_table(HEADS[language][2], rows), sentence, f"![{TOWERS.stem}](img/{TOWERS.stem}.svg)"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def page(language: str) -> str:
    """Return the page with its tables rewritten from the results."""
    text = PAGES[language].read_text(encoding="utf-8")
    results = read_results(RESULTS) if RESULTS.is_dir() else {}
    towers = read_json(TOWERS, dict[str, Any])["results"] if TOWERS.is_file() else None
    for mark, content in blocks(language, results, towers).items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)"
        block = f"\n{content}\n\n" if content else ""
        text, found = re.subn(pattern, lambda m, block=block: m[1] + block + m[2], text, flags=re.DOTALL)
        assert found == 1, f"{PAGES[language].name} lacks the mark {mark}"
    return text


def take_over(folder: Path) -> None:
    """Copy results and plots of `alexnet ablate` from `folder`, with paths that mean something elsewhere."""
    RESULTS.mkdir(exist_ok=True)
    for name, found in read_results(folder).items():
        if data := found["recipe"].get("data"):
            found["recipe"]["data"] = Path(data).name
        found["files"] = [Path(file).name for file in found["files"]]
        for arm in found["arms"]:
            arm["runs"] = [_below_out(run) for run in arm["runs"]]
            arm["outcomes"] = [{**outcome, "run": _below_out(outcome["run"])} for outcome in arm["outcomes"]]
        write_json(RESULTS / f"{name}.json", found)
        shutil.copy(folder / f"{name}.svg", IMAGES / f"ablate-{name}.svg")


def _below_out(run: str) -> str:
    return run[run.rindex("arms/") :]


def take_over_runs(folder: Path) -> None:
    """Write the finished runs below `folder`, a line each, to a file per arm; those of other seeds stay in it."""
    ARMS.mkdir(exist_ok=True)
    for arm in sorted((folder / "arms").iterdir()):
        target = ARMS / f"{arm.name}.jsonl"
        runs = {line["run"]: line for line in _lines(target)} if target.is_file() else {}
        for run in arm.glob("seed-*"):
            if (run / "env.json").is_file() and Run(run).summary().get("complete"):
                runs[run.name] = _line(run)
        if runs:
            target.write_text(_text([runs[name] for name in sorted(runs, key=_seed)]), encoding="utf-8")


def _line(run: Path) -> dict[str, Any]:
    recipe, env = (read_json(run / name, dict[str, Any]) for name in ("recipe.json", "env.json"))
    recipe["data"] = Path(recipe["data"]).name
    kept = ("versions", "cpu", "cores", "threads", "device", "gpu", "git")
    measured = {path.stem.rsplit("-", 1)[0]: read_json(path, list[float]) for path in _measured(run)}
    return {
        "run": run.name,
        "recipe": recipe,
        "metrics": _lines(run / "metrics.jsonl"),
        "summary": read_json(run / "summary.json", dict[str, Any]),
        "env": {key: env[key] for key in kept},
        "measured": measured,  # after training, by `alexnet ablate`: accuracy and number of images
    }


def _measured(run: Path) -> list[Path]:
    return sorted(run.parent.glob(f"*-{_seed(run.name)}.json"))


def _seed(run: str) -> int:
    return int(run.removeprefix("seed-"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def restore(folder: Path) -> None:
    """Write the runs of docs/results/arms to `folder`, without weights. Runs that are there stay as they are."""
    for path in ARMS.glob("*.jsonl"):
        for line in _lines(path):
            run = folder / "arms" / path.stem / line["run"]
            if run.exists():
                continue
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text(_text(line["metrics"]), encoding="utf-8")
            for name in ("recipe", "summary", "env"):
                write_json(run / f"{name}.json", line[name])
            for name, values in line["measured"].items():
                write_json(run.parent / f"{name}-{_seed(run.name)}.json", values)


if __name__ == "__main__":
    if sys.argv[1:2] == ["restore"]:
        restore(Path(sys.argv[2]))
        sys.exit()
    if len(sys.argv) > 1:
        take_over(Path(sys.argv[1]))
        take_over_runs(Path(sys.argv[1]))
    for language, path in PAGES.items():
        path.write_text(page(language), encoding="utf-8")
