// The page of `alexnet serve`: images are dropped, pasted, chosen, photographed or picked from samples; each gets a card
// with the server's results. File names and labels are untrusted: they only ever become textContent.
import { make, makeFigure } from "./elements.js";
import { fitLimits, send } from "./server.js";
import { join, language, otherLanguage, percent, switchLanguage, text, translate, visible } from "./texts.js";
import { followTraining, renderTraining } from "./training.js";

const $ = (id) => document.getElementById(id);
const EXPLANATIONS = { saliency: showSaliency, activations: showActivations, similar: showSimilar };
let models = [], loaded = false; // no models: a run without a checkpoint
const cards = []; // newest first

const currentModel = () => models.find((model) => model.name === $("model").value) ?? models[0];
const url = (path, values = {}) => `v1/${path}?${new URLSearchParams({ model: currentModel().name, ...values })}`;

// ── an image and its results ─────────────────────────────────────────────────────────────────────

class Card {
  constructor(file, name, truth = null) {
    Object.assign(this, { file, name, truth, result: null, error: null, sent: null, explanations: {} });
    this.element = $("card").content.firstElementChild.cloneNode(true);
    this.image = this.find(".preview");
    this.loaded = new Promise((resolve) => { this.image.onload = this.image.onerror = resolve; }).then(() => {
      const side = Math.max(this.image.naturalWidth, this.image.naturalHeight);
      this.unseen = side === 0; // no image, or a format that only the server can decode
      this.showPreview();
      this.image.classList.toggle("tiny", side > 0 && side <= 64);
    });
    this.image.src = URL.createObjectURL(file);
    for (const details of this.element.querySelectorAll("details"))
      details.addEventListener("toggle", () => details.open && this.explain(details.dataset.look));
    for (const select of this.element.querySelectorAll("select"))
      select.addEventListener("change", () => {
        this.explanations = { ...this.explanations, saliency: null };
        this.explain("saliency");
      });
    this.render();
  }

  find(selector) { return this.element.querySelector(selector); }
  details(kind) { return this.find(`[data-look=${kind}]`); }

  // Classify with the current model. A response that arrives after the next request is dropped.
  async classify() {
    this.controller?.abort();
    const controller = (this.controller = new AbortController());
    Object.assign(this, { result: null, error: null, explanations: {} });
    for (const details of this.element.querySelectorAll("details")) details.open = false;
    this.render();
    try {
      await ready;
      this.sent = await this.loaded.then(() => fitLimits(currentModel().limits, this.file, this.image, this.name()));
      const path = url("predict", { top_k: Math.min(5, currentModel().classes.length), ten_crop: tenCrops() });
      const response = await send(path, { ...this.sent, notify: setStatus, signal: controller.signal });
      const { predictions: [result], threshold } = await response.json();
      if (controller.signal.aborted) return;
      if (result.error) this.error = text("server_error", { error: result.error });
      else this.result = { ...result, threshold };
    } catch (error) {
      if (controller.signal.aborted) return;
      this.error = error.message;
    }
    this.render();
    reportProgress();
    if (batch[0] === this && !this.scrolledTo) this.element.scrollIntoView({ block: "nearest" });
    this.scrolledTo = true;
  }

  // Fill the card in the current language.
  render() {
    const { result, error, truth } = this;
    translate(this.element);
    this.showPreview();
    this.element.setAttribute("aria-busy", String(!result && !error));
    this.image.alt = text("image_alt", { name: this.name() });
    this.find(".name").textContent = visible(this.name());
    this.setLine(".error", error);
    const waiting = result || error ? [] : [make("li", { className: "quiet", text: text("waiting") })];
    this.find(".labels").replaceChildren(...waiting, ...(result?.labels ?? []).map(makeBar));
    const confidence = result?.confidence == null ? "" : percent(result.confidence);
    let threshold = result?.threshold == null ? "" : percent(result.threshold);
    if (result?.unsure && threshold === confidence) threshold = percent(result.threshold, 3); // missed by less than that
    this.setLine(".unsure", result?.unsure && text("unsure", { confidence, threshold }));
    const facts = [result?.unsure === false && text("sure", { confidence, threshold }), truth && text("true_label", { label: truth })];
    this.setLine(".truth", join(facts));
    this.setLine(".note", result && this.sent?.shrunk && text("shrunk", this.sent.shrunk));
    for (const [kind, show] of Object.entries(EXPLANATIONS)) {
      this.details(kind).hidden = !result || !currentModel().looks.includes(kind);
      if (this.explanations[kind]) show(this.details(kind).querySelector(".shown"), this.explanations[kind]);
    }
    if (result && this.listed !== result) {
      this.listed = result;
      this.find(".label-choice").replaceChildren(
        ...result.labels.map(({ label }) => make("option", { text: visible(label), value: label })));
    }
  }

  // Show the image, or in its place why this browser cannot.
  showPreview() {
    const kind = (this.name().match(/\.(\w{2,5})$/)?.[1] ?? "").toUpperCase();
    const known = !kind || ["JPG", "JPEG", "PNG", "GIF", "WEBP", "BMP"].includes(kind);
    this.image.hidden = Boolean(this.unseen);
    this.setLine(".unseen", this.unseen && (known ? text("no_preview") : text("no_preview_of", { kind })));
  }

  setLine(selector, content) {
    this.find(selector).textContent = content || "";
    this.find(selector).hidden = !content;
  }

  // Fetch and show an explanation when its part of the card is opened.
  async explain(kind) {
    if (this.explanations[kind] || !this.result) return;
    const place = this.details(kind).querySelector(".shown"), { signal } = this.controller;
    const chosen = { label: this.find(".label-choice").value, method: this.find(".method-choice").value };
    const notify = (message) => place.replaceChildren(make("p", { className: "quiet", text: message }));
    notify(text("waiting"));
    try {
      const response = await send(url(kind, kind === "saliency" ? chosen : {}), { ...this.sent, notify, signal });
      const explanation = await response.json();
      const changed = kind === "saliency" && Object.entries(chosen).some(([k, v]) => this.find(`.${k}-choice`).value !== v);
      if (signal.aborted || changed) return;
      this.explanations[kind] = explanation;
      EXPLANATIONS[kind](place, explanation);
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(make("p", { className: "error", text: error.message }));
    }
  }
}

function makeBar({ label, confidence }) {
  const filled = make("i");
  filled.style.width = `${100 * confidence}%`;
  const track = make("span", { className: "bar" }, filled);
  const name = make("span", { className: "label" });
  for (const part of visible(label).split(/(?<=[_/])/)) name.append(part, make("wbr")); // where long_names may wrap
  return make("li", {}, name, track, make("b", { text: percent(confidence) }));
}

// ── explanations ─────────────────────────────────────────────────────────────────────────────────

function showSaliency(place, { label, probability, method, input, image }) {
  const caption = text("saliency_caption", { label, p: percent(probability) });
  const grid = make("div", { className: "pair" }, makeFigure(input, text("input")), makeFigure(image, caption));
  place.replaceChildren(grid, make("p", { className: "quiet", text: text(`saliency_${method}`) }));
}

function showActivations(place, { stages }) {
  const figures = stages.map(({ name, shape, active, image }) =>
    makeFigure(image, text("stage", { name, shape: shape.join("×"), active: percent(active) })));
  const note = make("p", { className: "quiet", text: text("activations_note") });
  place.replaceChildren(note, make("div", { className: "stages" }, ...figures));
}

function showSimilar(place, { layer, neighbors }) {
  const figures = neighbors.map(({ label, distance, image }) =>
    makeFigure(image, `${visible(label)} · ${distance.toPrecision(3)}`));
  const note = make("p", { className: "quiet", text: text("similar_note", { layer }) });
  place.replaceChildren(make("div", { className: "thumbnails" }, ...figures), note);
}

// ── the status line above the cards, also read by screen readers ─────────────────────────────────

function setStatus(message) {
  $("status").textContent = message;
}

let batch = []; // the cards of the latest request

function reportProgress() {
  const done = batch.filter((card) => card.result || card.error);
  if (batch.length > 1) return setStatus(text("done_many", { done: done.length, all: batch.length }));
  if (!done.length) return undefined;
  const { result, error } = done[0], name = done[0].name().slice(0, 40);
  if (error) return setStatus(text("failed_one", { name, error }));
  const [{ label, confidence }] = result.labels;
  return setStatus(text(result.unsure ? "done_one_unsure" : "done_one", { name, label, p: percent(confidence) }));
}

// ── adding images ────────────────────────────────────────────────────────────────────────────────

function addFiles(files) {
  addCards([...files].map((file) => new Card(file, () => file.name)));
}

function addCards(added) {
  if (!added.length) return undefined;
  if (loaded && !models.length) return setStatus(text("no_checkpoint"));
  cards.unshift(...added);
  $("results").prepend(...added.map((card) => card.element));
  $("clear").hidden = false;
  return classify(added);
}

function classify(chosen) {
  batch = chosen;
  setStatus(text("waiting"));
  for (const card of chosen) card.classify();
}

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  event.preventDefault(); // otherwise the browser opens what is dropped
  $("drop").classList.toggle("over", carriesFiles(event));
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over"); // it has left the window
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer?.files.length) addFiles(event.dataTransfer.files);
  else setStatus(text("no_file"));
});
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) addFiles(event.clipboardData.files);
  else if (!event.target.closest?.("input")) setStatus(text("no_file"));
});
for (const input of [$("files"), $("camera")]) {
  input.addEventListener("change", () => {
    addFiles(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}
$("clear").addEventListener("click", () => {
  for (const card of cards) {
    card.controller?.abort();
    URL.revokeObjectURL(card.image.src);
  }
  cards.length = 0;
  $("results").replaceChildren();
  $("clear").hidden = true;
  setStatus("");
  $("files").focus();
});

// ── sample images of the run ─────────────────────────────────────────────────────────────────────

let samples = []; // {button, label, number}

async function showSamples() {
  const model = currentModel();
  samples = [];
  $("samples").hidden = true;
  $("samples").querySelector("ul").replaceChildren();
  if (!model.looks.includes("samples")) return;
  const listed = await send(url("samples")).then((response) => response.json()).catch(() => ({ samples: [] }));
  const fetched = await Promise.all(listed.samples.map(fetchSample));
  if (model !== currentModel()) return;
  samples = fetched.filter(Boolean);
  $("samples").querySelector("ul").replaceChildren(...samples.map(({ button }) => make("li", {}, button)));
  $("samples").hidden = !samples.length;
  nameSamples();
}

// Fetched, not linked, since an <img> sends no token; the complete file is then available for classification.
async function fetchSample({ label, url: address }, index) {
  const file = await send(address).then((response) => response.blob()).catch(() => null);
  if (!file) return null;
  const image = make("img", { src: URL.createObjectURL(file), alt: "" });
  const button = make("button", { type: "button" }, image);
  const number = index + 1;
  button.addEventListener("click", () => addCards([new Card(file, () => text("sample_name", { number }), label)]));
  return { button, label, number };
}

function nameSamples() {
  for (const { button, label, number } of samples) {
    button.title = text("sample", { number, label });
    button.setAttribute("aria-label", button.title);
  }
}

// ── settings ─────────────────────────────────────────────────────────────────────────────────────

const tenCrops = () => $("ten").checked && !$("crops").hidden;

function showModel() {
  const model = currentModel();
  const { name, architecture, classes, image_size: size } = model;
  $("about").textContent = text("about", { name, architecture, classes: classes.length, size });
  $("crops").hidden = !model.views.includes(10);
}

$("model").addEventListener("change", () => {
  showModel();
  showSamples();
  showTraining();
  if (cards.length) classify([...cards]);
});
$("ten").addEventListener("change", () => cards.length && classify([...cards]));
$("language").addEventListener("click", () => {
  switchLanguage();
  showLanguage();
});

function showLanguage() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  $("language").textContent = text("language", {}, otherLanguage());
  $("language").lang = language === "zh" ? "en" : "zh-Hans";
  translate(document);
  if (models.length) showModel();
  nameSamples();
  renderTraining();
  for (const card of cards) {
    if (card.error) card.classify(); // the reason comes in the language of the request
    else card.render();
  }
  if (batch.length && cards.length) reportProgress();
}

// Show the training of the current model, or of a run that has no checkpoint yet; classify again by a better network.
function showTraining() {
  const model = currentModel();
  followTraining(model?.name, !model || model.looks.includes("training"), () => {
    if (!models.length) start();
    else if (cards.length) classify([...cards]);
  });
}

async function start() {
  const served = await send("v1/models", { notify: setStatus }).then((response) => response.json());
  models = served.models;
  loaded = true;
  for (const id of ["drop", "settings"]) $(id).hidden = !models.length;
  if (!models.length) return showTraining();
  $("model").replaceChildren(...models.map(({ name }) => make("option", { text: name, value: name })));
  $("model").value = served.default;
  $("choice").hidden = models.length < 2;
  showModel();
  showSamples();
  return showTraining();
}

async function connect() {
  for (;;) {
    setStatus(text("connecting"));
    try {
      return await start();
    } catch (error) {
      if (!error.unreachable) throw error;
      await new Promise((wake) => setTimeout(wake, 2000));
    }
  }
}

showLanguage();
const ready = connect(); // images may be added before it is done
ready.then(() => setStatus(""), (error) => setStatus(error.message));
