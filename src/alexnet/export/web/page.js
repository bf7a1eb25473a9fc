// The page: an image in (a file, a drop, a paste, a sample, the camera), the labels out. explorer.js shows the rest.
"use strict";

const { classes, texts } = classifier.about, byId = (id) => document.getElementById(id), result = byId("result");
const format = (key, values = {}) => texts[key].replace(/{(\w+)}/g, (_, name) => values[name]);
const percent = (p) => `${(100 * p).toFixed(1)}%`;
const samples = JSON.parse(byId("sample-images").textContent);
let unedited = null; // the answer for this image without edits

function element(name, text = "", properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...properties });
}

// ── the answer ──────────────────────────────────────────────────────────────────────────────────

// Classifies an image and shows its labels, then its activations. Returns whether that worked.
async function show(source) {
  try {
    showAnswer(await classifier.call("classify", { source }), !explorer.edits().length);
    await explorer.update();
    return true;
  } catch (error) {
    if (error.code !== "superseded") showError(error);
    return false;
  }
}

function showAnswer({ confidences, unsure, milliseconds }, asTrained) {
  unedited = asTrained ? confidences : unedited;
  const best = [...confidences.keys()].sort((a, b) => confidences[b] - confidences[a]).slice(0, 5);
  const rows = best.map((i) => {
    const row = element("div", "", { className: "bar" }), bar = element("div");
    bar.style.width = percent(confidences[i]);
    row.append(element("span", classes[i]), element("span", percent(confidences[i])), bar);
    if (!asTrained && unedited) row.append(element("span", format("before", { p: percent(unedited[i]) }), { className: "quiet" }));
    return row;
  });
  const note = unsure ? [element("p", texts.unsure, { className: "unsure" })] : [];
  result.replaceChildren(...note, ...rows, element("p", format("time", { ms: milliseconds.toFixed(1) }), { className: "quiet" }));
}

function showError({ code, message }) {
  const text = texts[`error_${code}`] || format("error_failed", { reason: message });
  result.replaceChildren(element("p", text, { className: "warning" }));
}

// ── images ──────────────────────────────────────────────────────────────────────────────────────

function open(files) {
  if (!files.length) return;
  camera.stop();
  unedited = null;
  show(files[0]);
}

byId("file").addEventListener("change", (event) => open(event.target.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files); });
document.addEventListener("paste", (event) => open(event.clipboardData.files));

const sampleName = (i) => format("sample", { number: i + 1, label: samples[i].label === null ? "" : classes[samples[i].label] }).trim();

samples.forEach(({ url }, i) => {
  const button = element("button", "", { type: "button", title: sampleName(i) }), item = element("li");
  button.append(element("img", "", { src: url, alt: sampleName(i) }));
  button.addEventListener("click", () => open([toBlob(url)]));
  item.append(button);
  byId("samples").append(item);
});

// A data URL as a file; fetch() would be refused by the page's own security policy.
function toBlob(url) {
  const [head, body] = url.split(","), type = head.slice(5, head.indexOf(";"));
  return new Blob([Uint8Array.from(atob(body), (c) => c.charCodeAt(0))], { type });
}

// ── the camera ──────────────────────────────────────────────────────────────────────────────────

const CAMERA_ERRORS = { NotAllowedError: "camera-refused", NotReadableError: "camera-busy" };

const camera = {
  stream: null,

  async start() {
    try {
      if (!navigator.mediaDevices) throw { name: "NotFoundError" };
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch ({ name }) {
      return showError({ code: CAMERA_ERRORS[name] || "no-camera" });
    }
    const video = byId("video");
    this.mark(true);
    video.srcObject = this.stream;
    await video.play();
    while (this.stream && (await show(await createImageBitmap(video)))) await new Promise(requestAnimationFrame);
    this.stop();
  },

  stop() {
    if (!this.stream) return;
    this.stream.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.mark(false);
  },

  mark(on) {
    byId("video").hidden = !on;
    byId("camera").textContent = on ? texts.camera_stop : texts.camera;
    result.setAttribute("aria-live", on ? "off" : "polite"); // a screen reader could not keep pace
  },
};

byId("camera").addEventListener("click", () => (camera.stream ? camera.stop() : camera.start()));
classifier.ready.then(() => result.replaceChildren(), showError);
