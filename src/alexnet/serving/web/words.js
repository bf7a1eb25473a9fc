// What the page says, in English and Chinese. {name} in a sentence stands for a value.

const WORDS = {
  en: {
    other: "中文",
    drop: "Drop pictures here, or paste them",
    choose: "Choose pictures",
    photograph: "Take a photo",
    private: "Pictures go to this server, nowhere else, and are not kept.",
    model: "Network",
    about: "{name}: {architecture}, {classes} classes, reads {size}×{size} pixels",
    ten: "Ten crops (slower)",
    samples: "Or try one of the pictures that the network was tested on",
    sample: "Sample {number}: {label}",
    sample_name: "sample {number}",
    clear: "Clear",
    api: "How programs ask this server",
    waiting: "Waiting for the answer …",
    picture: "The picture {name}",
    unsure: "The network is unsure: its confidence, {confidence}, is below its threshold. Do not rely on these labels.",
    sure: "Confidence {confidence}, above the network's threshold.",
    truth: "Its true label: {label}.",
    shrunk: "Shrunk in this browser from {from} to {to} pixels, since the server takes no more; the numbers may differ " +
      "a little from those of the whole picture.",
    too_large: "{name} is larger than the server takes ({limit}), and this browser cannot shrink it.",
    unreadable: "This cannot be read; is it a folder, or was it moved?",
    no_file: "That was no file. Save the picture first, or copy the picture itself.",
    done_one: "{name}: {label} {p}",
    done_one_unsure: "{name}: unsure, perhaps {label} {p}",
    done_many: "{done} of {all} pictures answered",
    failed_one: "{name}: {error}",
    busy: "The server is busy; asking again in {seconds} s.",
    unreachable: "The server cannot be reached; is it running?",
    failed: "The server answered with error {status}.",
    server_says: "{error}",
    token: "This server asks for a token. Whoever runs it can tell you.",
    token_wrong: "The server does not know this token.",
    token_label: "Token",
    token_send: "Send",
    token_none: "Without the token this server does not answer; reload the page to be asked again.",
    saliency: "Where it looks",
    label: "Label",
    method: "Method",
    occlusion: "Occlusion (slower)",
    seen: "What the network sees",
    saliency_said: "What speaks for “{label}” ({p})",
    "saliency_grad-cam": "Orange is where the maps of the last convolution speak for the label (Grad-CAM).",
    saliency_occlusion: "A grey square hides one place after the other. Orange is where that lowers the score of " +
      "the label, blue where it raises it.",
    activations: "Layer by layer",
    activations_said: "Of each layer the eight maps with the largest mean, dark for nothing, yellow for the largest; of " +
      "fully connected layers all units. “Active” is the share of values above zero.",
    stage: "{name}: {shape}, {active} active",
    similar: "Similar training pictures",
    similar_said: "The training pictures whose activations at {layer} are nearest, with the distance.",
  },
  zh: {
    other: "English",
    drop: "把图片拖到这里，或直接粘贴",
    choose: "选择图片",
    photograph: "拍照",
    private: "图片只发送到本服务器，不会保存。",
    model: "网络",
    about: "{name}：{architecture}，{classes} 个类别，输入 {size}×{size} 像素",
    ten: "十个裁剪取平均（较慢）",
    samples: "也可以点一张用来测试该网络的图片",
    sample: "示例 {number}：{label}",
    sample_name: "示例 {number}",
    clear: "清空",
    api: "程序如何调用本服务器",
    waiting: "等待回答……",
    picture: "图片 {name}",
    unsure: "网络没有把握：置信度 {confidence} 低于它的阈值，请不要依赖这些标签。",
    sure: "置信度 {confidence}，高于该网络的阈值。",
    truth: "真实标签：{label}。",
    shrunk: "服务器不接受这么大的图片，已在浏览器中从 {from} 缩小到 {to} 像素；结果可能与原图略有不同。",
    too_large: "{name} 超过服务器的上限（{limit}），浏览器也无法把它缩小。",
    unreadable: "无法读取；它是文件夹，或者已被移走？",
    no_file: "这不是文件。请先保存图片，或直接复制图片本身。",
    done_one: "{name}：{label} {p}",
    done_one_unsure: "{name}：没有把握，可能是 {label} {p}",
    done_many: "{all} 张图片中已回答 {done} 张",
    failed_one: "{name}：{error}",
    busy: "服务器正忙，{seconds} 秒后重试。",
    unreachable: "无法连接服务器；它还在运行吗？",
    failed: "服务器返回错误 {status}。",
    server_says: "服务器的回答：{error}",
    token: "本服务器需要令牌，请向管理员索取。",
    token_wrong: "服务器不认识这个令牌。",
    token_label: "令牌",
    token_send: "发送",
    token_none: "没有令牌服务器不会回答；重新载入页面可再次输入。",
    saliency: "它在看哪里",
    label: "标签",
    method: "方法",
    occlusion: "遮挡法（较慢）",
    seen: "网络看到的图片",
    saliency_said: "哪些地方支持“{label}”（{p}）",
    "saliency_grad-cam": "橙色：最后一个卷积层的特征图在这些地方支持该标签（Grad-CAM）。",
    saliency_occlusion: "用灰色方块依次遮住各处：遮住后标签得分下降的地方为橙色，上升的地方为蓝色。",
    activations: "逐层查看",
    activations_said: "每层显示平均值最大的八张特征图，深色表示零，黄色表示最大值；全连接层显示全部单元。“激活”是大于零的比例。",
    stage: "{name}：{shape}，{active} 激活",
    similar: "相似的训练图片",
    similar_said: "在 {layer} 层的激活空间中距离最近的训练图片，以及距离。",
  },
};

export let language = sessionStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export function otherLanguage() {
  language = language === "en" ? "zh" : "en";
  sessionStorage.setItem("language", language);
}

export function say(key, values = {}) {
  return WORDS[language][key].replace(/{(\w+)}/g, (_, name) => values[name]);
}

export function percent(p) {
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1, minimumFractionDigits: 1 }).format(p);
}

// Every element below `root` that names its text gets it; textContent, so that no text can become markup.
export function translate(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
}
