"""What the pages of runs say, in English and in Chinese: one entry a text, with the same places for numbers in both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alexnet.errors import unknown_name

LANGUAGES = {"en": "en", "zh": "zh-CN"}

TEXT: dict[str, tuple[str, str]] = {
    # the top of the page
    "result": ("Result", "结果"),
    "right": (
        "of {n:,} pictures of the {split} split are labelled rightly",
        "（{split} 部分共 {n:,} 张图片的正确率）",
    ),
    "range": (
        "With 95 % confidence the accuracy on more such pictures lies between {low:.1%} and {high:.1%}. {top5:.1%} "
        "have the true label among the first five. Always answering the commonest of the {classes} classes would "
        "give {commonest:.1%}, drawing lots {lots:.1%}.",
        "对更多同类图片，正确率有 95 % 的把握在 {low:.1%} 到 {high:.1%} 之间。前五个答案中含正确标签的占 {top5:.1%}"
        "。若总是回答 {classes} 类中最常见的一类，正确率为 {commonest:.1%}；随机猜测为 {lots:.1%}。",
    ),
    "scale": (
        "The bar is the accuracy from 0 to 100 %, its dark part the interval; the orange mark is always answering "
        "the commonest class.",
        "横条表示 0 到 100 % 的正确率，深色部分是置信区间；橙色标记是总回答最常见类别的正确率。",
    ),
    "epochs_done": (
        "Best epoch {best} of {epochs} (chosen on {split}); {time} of training on {device}.",
        "共训练 {epochs} 轮，最佳为第 {best} 轮（依据 {split} 选出）；在 {device} 上训练用时 {time}。",
    ),
    "unfinished": (
        "The run has not reached its end: 'alexnet resume {run}' goes on with it.",
        "训练尚未结束：用 'alexnet resume {run}' 继续。",
    ),
    "part_failed": ("This part cannot be shown: {why}", "这一部分无法显示：{why}"),
    "no_evaluation": (
        "What follows from single answers is missing: the run has no evaluation of its {split} split; 'alexnet "
        "eval {run}' makes it.",
        "缺少由逐张预测得出的内容：该运行没有 {split} 部分的评估结果；'alexnet eval {run}' 可生成。",
    ),
    # next
    "next": ("What to try next", "下一步可以尝试"),
    "alarms": ("Said while training", "训练时的提示"),
    "warnings": ("Warnings of the data check", "数据检查的警告"),
    "left_out": ("{n:,} files could not be read and were left out:", "有 {n:,} 个文件无法读取，已略去："),
    "why": ("reason", "原因"),
    "at_epoch": ("Epoch {n}: {said}", "第 {n} 轮：{said}"),
    # curves
    "curves": ("How it learned", "学习过程"),
    "curves_said": (
        "Solid is {split}, on plain pictures. Dashed is training: on augmented pictures, with label smoothing "
        "where that is used, while the network still learns, so that it may well look worse. The dot is the best "
        "epoch.",
        "实线为 {split}，使用原图。虚线为训练：图片经过增强，可能带标签平滑，且网络仍在变化，因此看起来可能更差。圆"
        "点为最佳轮次。",
    ),
    "loss": ("loss", "损失"),
    "top1": ("top-1 accuracy", "top-1 正确率"),
    "rate": ("learning rate", "学习率"),
    "speed": ("images per second", "每秒图片数"),
    "epoch": ("epoch", "轮次"),
    "training": ("training", "训练"),
    "every_epoch": ("Every epoch", "每一轮"),
    "train_loss": ("training loss", "训练损失"),
    "train_top1": ("training top-1", "训练 top-1"),
    "top5": ("top-5", "top-5"),
    "seconds": ("seconds", "秒"),
    # classes
    "confusion": ("What is taken for what", "混淆矩阵"),
    "confusion_said": (
        "A row is a true class, a column what the network said. Blue is right, orange is confused; the stronger, "
        "the larger the share of the row. Classes that are confused with each other stand together.",
        "每行是真实类别，每列是网络的回答。蓝色为正确，橙色为混淆；颜色越深，占该行的比例越大。容易混淆的类别排在一"
        "起。",
    ),
    "true_said": ("true ↓ · said →", "真实 ↓ · 回答 →"),
    "zoom": ("Size of a cell", "单元格大小"),
    "point": ("Point at a cell to read it.", "指向单元格可查看数值。"),
    "cell": (
        "{true} was called {said} {count} times of {sum} ({share} %)",
        "{true} 被判为 {said}：{sum} 次中有 {count} 次（{share} %）",
    ),
    "pairs": ("The most frequent confusions", "最常见的混淆"),
    "classes": ("Classes", "各类别"),
    "classes_said": (
        "Precision: of the pictures that were given this label, the share that bears it. Recall: of the pictures "
        "that bear it, the share that was given it. F1 is their harmonic mean. A heading sorts.",
        "精确率：被判为该类的图片中判对的比例。召回率：该类图片中被找出的比例。F1 是二者的调和平均。点击表头可排序。",
    ),
    "class": ("class", "类别"),
    "images": ("images", "图片数"),
    "precision": ("precision", "精确率"),
    "recall": ("recall", "召回率"),
    "f1": ("F1", "F1"),
    "mostly": ("most often taken for", "最常被误认为"),
    "times": ("times", "次数"),
    "true": ("true", "真实类别"),
    "said": ("said", "回答"),
    "share": ("share of the class", "占该类比例"),
    # pictures
    "mistakes": ("The surest mistakes", "最有把握的错误"),
    "mistakes_said": (
        "What the network is surest of and wrong about. Pictures with a wrong label often stand here.",
        "网络最有把握却答错的图片。标注有误的图片往往出现在这里。",
    ),
    "no_mistakes": ("There are none: every picture was labelled rightly.", "没有：所有图片都判断正确。"),
    "lucky": ("The least sure successes", "最没把握的正确答案"),
    "lucky_said": ("Right, but only just.", "答对了，但很勉强。"),
    "is_not": ("{said} {p:.0%}, but it is {true}", "{said} {p:.0%}，实为 {true}"),
    "is": ("{said} {p:.0%}", "{said} {p:.0%}"),
    "pictures_gone": (
        "The pictures themselves cannot be read any more ({why}); here are their names.",
        "图片本身已无法读取（{why}）；以下是文件名。",
    ),
    "picture": ("file", "文件"),
    "sure": ("probability", "概率"),
    "filters": ("First-layer filters", "第一层滤波器"),
    "filters_said": (
        "Each tile is one filter of {name}: {n} of {k}×{k}, reading {channels} channels; grey is zero. Smooth "
        "edges, waves and colours are a good sign, noise says that the layer has learned little.",
        "每一格是 {name} 的一个滤波器：共 {n} 个，{k}×{k}，读取 {channels} 个通道；灰色为零。平滑的边缘、条纹和颜色"
        "是好的迹象；像噪声则说明这一层学到的不多。",
    ),
    "no_filters": ("This network has no convolution that reads the picture.", "该网络没有直接读取图片的卷积层。"),
    # confidence
    "calibration": ("How far to trust its confidence", "置信度是否可信"),
    "ece": (
        "On average the network gives its answer a probability of {mean:.1%}, and {top1:.1%} of the answers are "
        "right; by bins of confidence the two differ by {ece:.1%} (the expected calibration error).",
        "网络给出答案的平均概率为 {mean:.1%}，实际正确 {top1:.1%}；按置信度分组，二者平均相差 {ece:.1%}（期望校准误"
        "差）。",
    ),
    "corrected": (
        "Dividing the logits by {t:.3g}, the temperature found on {split}, makes that {ece:.1%}. No answer changes "
        "by it.",
        "将 logits 除以在 {split} 上求得的温度 {t:.3g} 后，差别为 {ece:.1%}。答案不会因此改变。",
    ),
    "threshold": (
        "Answers of less than {threshold:.1%} confidence are called unsure. Then {share:.1%} of the {split} "
        "pictures are answered.",
        "置信度低于 {threshold:.1%} 的答案称为“不确定”（unsure）。这样 {split} 图片中有 {share:.1%} 得到回答。",
    ),
    "answered": ("Of the answered {right:.1%} are right.", "得到回答的图片中 {right:.1%} 正确。"),
    "unanswered": (
        "Of the others the first label would have been right for {right:.1%}.",
        "其余图片的第一个标签有 {right:.1%} 本来是对的。",
    ),
    "fitted_now": (
        "The run stores no temperature and no threshold; they were fitted now, on {split}.",
        "该运行没有保存温度和阈值；以上数值是现在在 {split} 上求得的。",
    ),
    "not_calibrated": ("Nothing was fitted to correct it: {why}", "没有求温度和阈值：{why}"),
    "before": ("plain", "原始"),
    "after": ("with temperature", "加温度后"),
    "share_right": ("share that is right", "实际正确比例"),
    "unsure_below": ("unsure below", "不确定阈值"),
    "answered_share": ("pictures that are answered", "得到回答的比例"),
    "answered_right": ("right, of the answered", "回答的正确率"),
    "thresholds": ("Other thresholds", "其他阈值"),
    # data
    "augmented": ("What training sees", "训练看到的图片"),
    "augmented_said": ("A batch as the network got it, changed at random.", "网络实际得到的一批图片，经过随机变化。"),
    "split": ("The data", "数据"),
    "split_own": (
        "The data came without this division; it was made by class and by seed {seed}, and split.csv in the run "
        "folder lists it by file.",
        "数据原本没有这样划分；划分按类别、以随机种子 {seed} 完成，运行文件夹中的 split.csv 按文件列出。",
    ),
    "split_given": (
        "The data came divided as it is used. Training had about {n:,} pictures.",
        "数据按其原有划分使用。训练集约有 {n:,} 张图片。",
    ),
    "part": ("split", "部分"),
    "data_is": ("data", "数据"),
    # how it was made
    "made": ("How it was made", "如何得到"),
    "architecture": ("architecture", "网络结构"),
    "parameters": ("{n:,} parameters", "{n:,} 个参数"),
    "input": ("input", "输入"),
    "time": ("time", "用时"),
    "time_is": (
        "{time} for {epochs} epochs, {speed:,.0f} training images per second",
        "{epochs} 轮共 {time}，每秒训练 {speed:,.0f} 张图片",
    ),
    "minutes": ("{m}\u00a0min\u00a0{s}\u00a0s", "{m} 分 {s} 秒"),
    "hours": ("{h}\u00a0h\u00a0{m}\u00a0min", "{h} 小时 {m} 分"),
    "just_seconds": ("{s:.1f}\u00a0s", "{s:.1f} 秒"),
    "numbers": ("precision", "数值精度"),
    "on_device": ("{precision} on {device}", "{precision}，{device}"),
    "memory": ("most memory", "最大内存"),
    "machine": ("machine", "机器"),
    "cores": ("{machine}, {cores} cores", "{machine}，{cores} 核"),
    "system": ("system", "系统"),
    "versions": ("versions", "版本"),
    "revision": ("revision", "代码版本"),
    "command": ("command", "命令"),
    "again": ("again", "重新运行"),
    "settings": ("All settings (recipe.json)", "全部设置（recipe.json）"),
    "files": ("Files", "文件"),
    "files_are": (
        "Each plot as PNG and SVG, and each table as CSV, in the folder {folder} beside this page: {names}.",
        "每张图的 PNG 和 SVG、每个表的 CSV 都在本页旁的 {folder} 文件夹中：{names}。",
    ),
    # several runs
    "compared": ("{n} runs side by side", "{n} 次运行的比较"),
    "compare_said": (
        "The dot is top-1 accuracy, the line its 95 % interval. Where two lines overlap the order may be chance.",
        "圆点为 top-1 正确率，线段为 95 % 置信区间。线段重叠时，名次可能出于偶然。",
    ),
    "accuracy": ("Accuracy", "正确率"),
    "runs": ("run", "运行"),
    "low": ("from", "下限"),
    "high": ("to", "上限"),
    "behind": ("points behind the best", "落后最佳的百分点"),
    "behind_low": ("at least", "至少"),
    "behind_high": ("at most", "至多"),
    "behind_said": (
        "The last columns compare with {best} on the same {n:,} pictures, one by one; where “at least” is below "
        "zero, the difference may be chance.",
        "最后几列与 {best} 在相同的 {n:,} 张图片上逐张比较；“至少”为负时，差别可能出于偶然。",
    ),
    "other_pictures": (
        "The runs were not measured on the same pictures, so that the accuracies cannot be compared strictly.",
        "这些运行并非在相同的图片上评估，正确率不能严格比较。",
    ),
    "cost": ("Time and size", "时间与规模"),
    "epochs": ("epochs", "轮数"),
    "weights": ("parameters", "参数"),
    "differ": ("Settings that differ", "不同的设置"),
    "same_settings": ("All settings are the same.", "所有设置相同。"),
    "setting": ("setting", "设置"),
    "minutes_axis": ("minutes of training", "训练分钟数"),
    # advice
    "advice_diverged": (
        "The loss became infinite or no number in epoch {epoch}: the learning rate {lr:.3g} is too high. Try a tenth.",
        "第 {epoch} 轮损失变为无穷或非数：学习率 {lr:.3g} 过高。请试十分之一。",
    ),
    "advice_stuck": (
        "The network is hardly better than guessing ({guess:.1%}). Look whether labels fit the pictures ('alexnet "
        "check'), then try a tenth of the learning rate.",
        "网络几乎不比猜测（{guess:.1%}）好。请先检查标签与图片是否相符（'alexnet check'），再试十分之一的学习率。",
    ),
    "advice_short": (
        "Training was short: the network has seen each picture {epochs}×. More epochs will bring more.",
        "训练很短：每张图片只看过 {epochs} 次。增加轮数会有提高。",
    ),
    "advice_improving": (
        "It was still getting better: {gain:.1f} points over the last {n} epochs, the last epoch being the best. "
        "Train for longer.",
        "它仍在进步：最后 {n} 轮提高了 {gain:.1f} 个百分点，且最后一轮最好。请训练更久。",
    ),
    "advice_overfit": (
        "It overfits since epoch {epoch}: the loss on {split} has grown from {least:.2f} to {last:.2f}, while "
        "{train:.1%} of the training pictures are right and {val:.1%} of the others. More pictures help most; else "
        "stronger augmentation, more weight decay, or fewer epochs.",
        "从第 {epoch} 轮起过拟合：{split} 损失由 {least:.2f} 升到 {last:.2f}，训练图片正确率 {train:.1%}，其他图片"
        "为 {val:.1%}。增加图片最有效；否则可加强增强、加大权重衰减或减少轮数。",
    ),
    "advice_gap": (
        "It knows its training pictures ({train:.1%}) much better than others ({val:.1%}). More pictures or "
        "stronger augmentation would help.",
        "它对训练图片（{train:.1%}）比对其他图片（{val:.1%}）熟悉得多。增加图片或加强增强会有帮助。",
    ),
    "advice_underfit": (
        "It has learned what it can: neither the training pictures ({train:.1%}) nor the others get better any "
        "more. A wider network, larger pictures or milder augmentation may bring more.",
        "它已学到所能学的：训练图片（{train:.1%}）和其他图片都不再进步。更宽的网络、更大的图片或较弱的增强可能有用。",
    ),
    "advice_jumps": (
        "The accuracy still jumps near the end (by {jump:.1f} points in epoch {epoch}). Half the learning rate, or "
        "a schedule that ends lower, gives a steadier result.",
        "临近结束时正确率仍在跳动（第 {epoch} 轮变化 {jump:.1f} 个百分点）。学习率减半，或让其在结尾降得更低，结果"
        "会更稳定。",
    ),
    "advice_few": (
        "About {each:.0f} training pictures a class are few for a network that starts from nothing. Starting from "
        "trained weights, or a linear classifier on the features of a trained network, does better with so few.",
        "每类约 {each:.0f} 张训练图片，对从零开始的网络偏少。以训练好的权重开始，或在训练好的网络的特征上训练线性分"
        "类器，效果更好。",
    ),
    "advice_uneven": (
        "Classes do unequally well: only {recall:.0%} of {label} are found, against {mean:.0%} on average. It has "
        "{own:,} pictures here, the commonest class {most:,}.",
        "各类差别较大：{label} 只找出 {recall:.0%}，平均为 {mean:.0%}。这里该类有 {own:,} 张图片，最常见的类有 "
        "{most:,} 张。",
    ),
    "advice_balance": (
        "The commonest class has {times:.0f} times as many pictures as the rarest, and rare ones do worse. Weigh "
        "the classes in training, or collect more of the rare ones.",
        "最常见类别的图片数是最少类别的 {times:.0f} 倍，少的类别效果较差。训练时对类别加权，或多收集少的类别。",
    ),
    "advice_pair": (
        "{share:.0%} of all mistakes are between {a} and {b}. Look at these pictures: are the labels right, and "
        "can the two be told apart at {size}×{size} pixels?",
        "{share:.0%} 的错误发生在 {a} 与 {b} 之间。请看看这些图片：标签对吗？在 {size}×{size} 像素下能分辨吗？",
    ),
    "advice_small_test": (
        "The accuracy is known to within {width:.0f} points only, as {n:,} pictures were looked at. Judge small "
        "differences by more pictures or several seeds.",
        "只看了 {n:,} 张图片，正确率的不确定范围有 {width:.0f} 个百分点。比较细小差别需要更多图片或多个随机种子。",
    ),
    "advice_optimistic": (
        "The test split does worse ({test:.1%}) than {split} ({val:.1%}), more than chance explains: its pictures "
        "may differ, or copies of training pictures may lie in {split}. 'alexnet check' looks for both.",
        "test 的正确率（{test:.1%}）低于 {split}（{val:.1%}），超出偶然范围：图片可能不同，或 {split} 中混有训练图"
        "片的副本。'alexnet check' 可以检查。",
    ),
    "advice_sure_mistakes": (
        "Of {wrong:,} mistakes {n:,} were made with more than 95 % confidence. Look at them below: often the label "
        "is wrong, not the answer.",
        "{wrong:,} 个错误中有 {n:,} 个的置信度超过 95 %。请看下文图片：错的往往是标签，而不是答案。",
    ),
    "advice_calibration": (
        "Its plain probabilities are off: {mean:.0%} on average, where {top1:.0%} are right. Go by the confidence "
        "that 'alexnet predict' gives beside them, which the temperature has corrected.",
        "它给出的概率有偏差：平均 {mean:.0%}，实际正确 {top1:.0%}。请以 'alexnet predict' 同时给出的、经温度校正的"
        "置信度为准。",
    ),
    "advice_confidence": (
        "Even with the temperature its confidence is off by {ece:.0%} here. The pictures of {split} may differ "
        "from those that it was fitted on, or these were few.",
        "即使加上温度，这里的置信度仍相差 {ece:.0%}。{split} 的图片可能与求温度所用的不同，或后者太少。",
    ),
    "advice_bad_files": (
        "{n:,} files could not be read and were left out of training.",
        "有 {n:,} 个文件无法读取，未用于训练。",
    ),
    "advice_nothing": (
        "Nothing in the curves stands out. Averaging ten views of each picture usually brings half a point or more "
        "without training.",
        "曲线没有异常。对每张图片的十个视图取平均，通常无需训练即可提高半个百分点或更多。",
    ),
}


class Translator:
    """The texts of one language: `words(key, **values)`. Raises `UserError` for a language that there is not."""

    def __init__(self, lang: str = "en") -> None:
        if lang not in LANGUAGES:
            raise unknown_name("language", lang, LANGUAGES)
        self.lang, self.tag = lang, LANGUAGES[lang]
        self._column = list(LANGUAGES).index(lang)

    def __call__(self, key: str, **values: Any) -> str:
        words = TEXT[key][self._column] if key else ""
        return words.format(**values) if values else words

    def join(self, sentences: Iterable[str]) -> str:
        """Sentences in a row, with a space between them where the language has one."""
        return (" " if self.lang == "en" else "").join(sentences)

    def duration(self, seconds: float) -> str:
        """Seconds in units that one reads at a glance."""
        if seconds < 60:
            return self("just_seconds", s=seconds)
        minutes, left = divmod(round(seconds), 60)
        if minutes < 60:
            return self("minutes", m=minutes, s=left)
        return self("hours", h=minutes // 60, m=minutes % 60)
