// Texts of the page in English and Chinese. {name} is replaced by a value.

const TEXTS = {
  en: {
    other: "中文",
    drop: "Drop or paste images here",
    choose: "Choose images",
    photograph: "Take a photo",
    private: "Images are sent to this server only and are not stored.",
    model: "Model",
    about: "{name}: {architecture}, {classes} classes, {size}×{size} pixel input",
    ten: "Ten crops (slower)",
    samples: "Or try one of the images the model was evaluated on",
    sample: "Sample {number}: {label}",
    sample_name: "sample {number}",
    clear: "Clear",
    api: "API reference",
    waiting: "Waiting for the server …",
    image_alt: "Image {name}",
    unsure: "Uncertain: the confidence of {confidence} is below the model's threshold. Do not rely on these labels.",
    sure: "Confidence {confidence}, above the model's threshold.",
    true_label: "True label: {label}.",
    shrunk: "Shrunk in the browser from {from} to {to} pixels because of the server's limits; the probabilities may " +
      "differ slightly from those of the original.",
    too_large: "{name} exceeds the server's limit ({limit}), and this browser cannot shrink it.",
    unreadable: "This file cannot be read; it may be a folder, or have been moved.",
    no_file: "There was no image file. Save the image first, or copy the image itself.",
    done_one: "{name}: {label} {p}",
    done_one_unsure: "{name}: uncertain, possibly {label} {p}",
    done_many: "{done} of {all} images done",
    failed_one: "{name}: {error}",
    busy: "The server is busy; retrying in {seconds} s.",
    unreachable: "The server cannot be reached; check that it is running.",
    failed: "The server responded with error {status}.",
    server_error: "{error}",
    token: "This server requires a token. Ask its administrator.",
    token_wrong: "Invalid token.",
    token_label: "Token",
    token_send: "Submit",
    token_none: "This server requires a token; reload the page to enter it.",
    saliency: "Saliency map",
    label: "Label",
    method: "Method",
    occlusion: "Occlusion (slower)",
    input: "Model input",
    saliency_caption: "Evidence for “{label}” ({p})",
    "saliency_grad-cam": "Orange: the feature maps of the last convolution support the label here (Grad-CAM).",
    saliency_occlusion: "A gray square hides one region after another. Orange: hiding it lowers the label's score; blue: " +
      "hiding it raises the score.",
    activations: "Feature maps by layer",
    activations_note: "The eight feature maps of each layer with the largest mean, from dark (zero) to yellow (maximum); " +
      "all units of fully connected layers. “Active” is the share of values above zero.",
    stage: "{name}: {shape}, {active} active",
    similar: "Similar training images",
    similar_note: "Nearest training images by their activations at {layer}, with the distance.",
  },
  zh: {
    other: "English",
    drop: "拖放或粘贴图片到此处",
    choose: "选择图片",
    photograph: "拍照",
    private: "图片只会上传到这台服务器，不会被保存。",
    model: "模型",
    about: "{name}：{architecture}，{classes} 个类别，输入 {size}×{size} 像素",
    ten: "十裁剪平均（较慢）",
    samples: "或者选一张评估该模型时用过的图片",
    sample: "示例 {number}：{label}",
    sample_name: "示例 {number}",
    clear: "清空",
    api: "API 文档",
    waiting: "正在等待服务器……",
    image_alt: "图片 {name}",
    unsure: "模型没有把握：置信度 {confidence} 低于阈值，以下结果不可靠。",
    sure: "置信度 {confidence}，高于模型的阈值。",
    true_label: "真实类别：{label}。",
    shrunk: "图片超出服务器限制，已在浏览器中从 {from} 缩小到 {to} 像素，结果可能与原图略有差异。",
    too_large: "{name} 超出服务器限制（{limit}），浏览器也无法缩小它。",
    unreadable: "无法读取该文件：它可能是文件夹，或已被移动。",
    no_file: "没有找到图片文件。请先保存图片，或直接复制图片本身。",
    done_one: "{name}：{label} {p}",
    done_one_unsure: "{name}：没有把握，可能是 {label} {p}",
    done_many: "已完成 {done}/{all} 张图片",
    failed_one: "{name}：{error}",
    busy: "服务器繁忙，{seconds} 秒后重试。",
    unreachable: "无法连接服务器，请检查它是否在运行。",
    failed: "服务器返回错误 {status}。",
    server_error: "服务器返回：{error}",
    token: "访问这台服务器需要令牌，请向管理员索取。",
    token_wrong: "令牌无效。",
    token_label: "令牌",
    token_send: "提交",
    token_none: "访问这台服务器需要令牌；刷新页面后可以重新输入。",
    saliency: "显著图",
    label: "类别",
    method: "方法",
    occlusion: "遮挡法（较慢）",
    input: "模型的输入",
    saliency_caption: "判为“{label}”的依据（{p}）",
    "saliency_grad-cam": "橙色：最后一个卷积层的特征图中支持该类别的区域（Grad-CAM）。",
    saliency_occlusion: "用灰色方块逐处遮挡图片：遮住后该类别得分下降的区域为橙色，上升的区域为蓝色。",
    activations: "各层特征图",
    activations_note: "每层显示均值最大的八张特征图，颜色从深（零）到黄（最大值）；全连接层显示全部神经元。“激活”指大于零的数值所占比例。",
    stage: "{name}：{shape}，{active} 激活",
    similar: "相似的训练图片",
    similar_note: "按 {layer} 层的激活值检索到的最近邻训练图片及其距离。",
  },
};

export let language = sessionStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  sessionStorage.setItem("language", language);
}

export function text(key, values = {}) {
  return TEXTS[language][key].replace(/{(\w+)}/g, (_, name) => values[name]);
}

export function percent(p) {
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1, minimumFractionDigits: 1 }).format(p);
}

// Fill every element below `root` that has data-text; textContent, so that no text can become markup.
export function translate(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
}
