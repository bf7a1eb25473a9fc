// The page of `alexnet serve`: pictures come in by drop, paste, choice, camera or as samples; each becomes a card that
// is filled with the server's answers. Names of files and labels are strangers' words: they only ever become textContent.
import { ask, within } from "./server.js";
import { language, otherLanguage, percent, say, translate } from "./words.js";

const $ = (id) => document.getElementById(id);
const LOOKS = { saliency: showSaliency, activations: showActivations, similar: showSimilar };
let models = [];
const cards = []; // the newest first

// An element with text and children.
function make(tag, { text = "", ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(text, ...children);
  return element;
}

const current = () => models.find((model) => model.name === $("model").value) ?? models[0];
const url = (path, values = {}) => `v1/${path}?${new URLSearchParams({ model: current().name, ...values })}`;

// ── a picture and what is said of it ─────────────────────────────────────────────────────────────────────────────

class Card {
  constructor(file, name, truth = null) {
    Object.assign(this, { file, name, truth, answer: null, error: null, sent: null, looks: {} });
    this.element = $("card").content.firstElementChild.cloneNode(true);
    this.image = this.find(".picture");
    this.shown = new Promise((done) => { this.image.onload = this.image.onerror = done; }).then(() => {
      const side = Math.max(this.image.naturalWidth, this.image.naturalHeight);
      this.image.classList.toggle("unseen", side === 0); // no picture, or of a kind that only the server reads
      this.image.classList.toggle("tiny", side > 0 && side <= 64);
    });
    this.image.src = URL.createObjectURL(file);
    for (const details of this.element.querySelectorAll("details"))
      details.addEventListener("toggle", () => details.open && this.look(details.dataset.look));
    for (const select of this.element.querySelectorAll("select"))
      select.addEventListener("change", () => { this.looks = { ...this.looks, saliency: null }; this.look("saliency"); });
    this.render();
  }

  find(selector) { return this.element.querySelector(selector); }
  details(look) { return this.find(`[data-look=${look}]`); }

  // Ask the chosen network. An answer that comes after the next question is dropped.
  async ask() {
    this.asked?.abort();
    const asked = (this.asked = new AbortController());
    Object.assign(this, { answer: null, error: null, looks: {} });
    for (const details of this.element.querySelectorAll("details")) details.open = false;
    this.render();
    try {
      await ready;
      this.sent = await this.shown.then(() => within(current().limits, this.file, this.image, this.name()));
      const path = url("predict", { top_k: Math.min(5, current().classes.length), ten_crop: tenCrops() });
      const response = await ask(path, { ...this.sent, tell: status, signal: asked.signal });
      const [answer] = (await response.json()).predictions;
      if (asked.signal.aborted) return;
      if (answer.error) this.error = say("server_says", { error: answer.error });
      else this.answer = answer;
    } catch (error) {
      if (asked.signal.aborted) return;
      this.error = error.message;
    }
    this.render();
    report();
    if (batch[0] === this && !this.met) this.element.scrollIntoView({ block: "nearest" });
    this.met = true;
  }

  // Fill the card anew, in the language of now.
  render() {
    const { answer, error, truth } = this;
    translate(this.element);
    this.element.setAttribute("aria-busy", String(!answer && !error));
    this.image.alt = say("picture", { name: this.name() });
    this.find(".name").textContent = this.name();
    this.line(".error", error);
    const waiting = answer || error ? [] : [make("li", { className: "quiet", text: say("waiting") })];
    this.find(".labels").replaceChildren(...waiting, ...(answer?.labels ?? []).map(bar));
    const confidence = answer?.confidence == null ? "" : percent(answer.confidence);
    this.line(".unsure", answer?.unsure && say("unsure", { confidence }));
    const said = [answer?.unsure === false && say("sure", { confidence }), truth && say("truth", { label: truth })];
    this.line(".truth", said.filter(Boolean).join(" "));
    this.line(".note", answer && this.sent?.shrunk && say("shrunk", this.sent.shrunk));
    for (const look of Object.keys(LOOKS)) {
      this.details(look).hidden = !answer || !current().looks.includes(look);
      if (this.looks[look]) LOOKS[look](this.details(look).querySelector(".shown"), this.looks[look]);
    }
    if (answer && this.labelled !== answer) {
      this.labelled = answer;
      this.find(".label-choice").replaceChildren(
        ...answer.labels.map(({ label }) => make("option", { text: label, value: label })));
    }
  }

  line(selector, text) {
    this.find(selector).textContent = text || "";
    this.find(selector).hidden = !text;
  }

  // Fetch a look inside the network when its part of the card is opened, and show it.
  async look(kind) {
    if (this.looks[kind] || !this.answer) return;
    const place = this.details(kind).querySelector(".shown"), { signal } = this.asked;
    const chosen = { label: this.find(".label-choice").value, method: this.find(".method-choice").value };
    place.replaceChildren(make("p", { className: "quiet", text: say("waiting") }));
    const tell = (text) => place.replaceChildren(make("p", { className: "quiet", text }));
    try {
      const response = await ask(url(kind, kind === "saliency" ? chosen : {}), { ...this.sent, tell, signal });
      const found = await response.json();
      const changed = kind === "saliency" && Object.entries(chosen).some(([k, v]) => this.find(`.${k}-choice`).value !== v);
      if (signal.aborted || changed) return;
      this.looks[kind] = found;
      LOOKS[kind](place, found);
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(make("p", { className: "error", text: error.message }));
    }
  }
}

function bar({ label, p }) {
  const filled = make("i");
  filled.style.width = `${100 * p}%`;
  const track = make("span", { className: "bar" }, filled);
  const name = make("span", { className: "label" });
  for (const part of label.split(/(?<=[_/])/)) name.append(part, make("wbr")); // where long_names may break
  return make("li", {}, name, track, make("b", { text: percent(p) }));
}

// ── looks inside ─────────────────────────────────────────────────────────────────────────────────────────────────

function figure(picture, caption) {
  const image = make("img", { src: picture, alt: caption });
  return make("figure", {}, image, make("figcaption", { text: caption }));
}

function showSaliency(place, { label, probability, method, seen, picture }) {
  const said = say("saliency_said", { label, p: percent(probability) });
  const grid = make("div", { className: "pair" }, figure(seen, say("seen")), figure(picture, said));
  place.replaceChildren(grid, make("p", { className: "quiet", text: say(`saliency_${method}`) }));
}

function showActivations(place, { stages }) {
  const figures = stages.map(({ name, shape, active, picture }) =>
    figure(picture, say("stage", { name, shape: shape.join("×"), active: percent(active) })));
  const said = make("p", { className: "quiet", text: say("activations_said") });
  place.replaceChildren(said, make("div", { className: "stages" }, ...figures));
}

function showSimilar(place, { layer, neighbours }) {
  const figures = neighbours.map(({ label, distance, picture }) => figure(picture, `${label} · ${distance.toPrecision(3)}`));
  const said = make("p", { className: "quiet", text: say("similar_said", { layer }) });
  place.replaceChildren(make("div", { className: "thumbnails" }, ...figures), said);
}

// ── what is said above the cards, and to those who listen ────────────────────────────────────────────────────────

function status(text) {
  $("status").textContent = text;
}

let batch = []; // the cards that were asked about last

function report() {
  const done = batch.filter((card) => card.answer || card.error);
  if (batch.length > 1) return status(say("done_many", { done: done.length, all: batch.length }));
  if (!done.length) return undefined;
  const { answer, error } = done[0], name = done[0].name().slice(0, 40);
  if (error) return status(say("failed_one", { name, error }));
  const [{ label, p }] = answer.labels;
  return status(say(answer.unsure ? "done_one_unsure" : "done_one", { name, label, p: percent(p) }));
}

// ── pictures come in ─────────────────────────────────────────────────────────────────────────────────────────────

function add(files) {
  take([...files].map((file) => new Card(file, () => file.name)));
}

function take(added) {
  if (!added.length) return;
  cards.unshift(...added);
  $("results").prepend(...added.map((card) => card.element));
  $("clear").hidden = false;
  answer(added);
}

function answer(asked) {
  batch = asked;
  status(say("waiting"));
  for (const card of asked) card.ask();
}

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  event.preventDefault(); // or the browser would open what is dropped
  $("drop").classList.toggle("over", carriesFiles(event));
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over"); // it has left the window
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer?.files.length) add(event.dataTransfer.files);
  else status(say("no_file"));
});
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) add(event.clipboardData.files);
  else if (!event.target.closest?.("input")) status(say("no_file"));
});
for (const input of [$("files"), $("camera")]) {
  input.addEventListener("change", () => {
    add(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}
$("clear").addEventListener("click", () => {
  for (const card of cards) {
    card.asked?.abort();
    URL.revokeObjectURL(card.image.src);
  }
  cards.length = 0;
  $("results").replaceChildren();
  $("clear").hidden = true;
  status("");
  $("files").focus();
});

// ── the run's own pictures ───────────────────────────────────────────────────────────────────────────────────────

let samples = []; // {button, label, number}

async function showSamples() {
  const model = current();
  samples = [];
  $("samples").hidden = true;
  $("samples").querySelector("ul").replaceChildren();
  if (!model.looks.includes("samples")) return;
  const listed = await ask(url("samples")).then((response) => response.json()).catch(() => ({ samples: [] }));
  const found = await Promise.all(listed.samples.map(fetchSample));
  if (model !== current()) return;
  samples = found.filter(Boolean);
  $("samples").querySelector("ul").replaceChildren(...samples.map(({ button }) => make("li", {}, button)));
  $("samples").hidden = !samples.length;
  nameSamples();
}

// Fetched and not linked, since an <img> sends no token. The whole file is then at hand to be asked about.
async function fetchSample({ label, url: address }, index) {
  const file = await ask(address).then((response) => response.blob()).catch(() => null);
  if (!file) return null;
  const image = make("img", { src: URL.createObjectURL(file), alt: "" });
  const button = make("button", { type: "button" }, image);
  const number = index + 1;
  button.addEventListener("click", () => take([new Card(file, () => say("sample_name", { number }), label)]));
  return { button, label, number };
}

function nameSamples() {
  for (const { button, label, number } of samples) {
    button.title = say("sample", { number, label });
    button.setAttribute("aria-label", button.title);
  }
}

// ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────

const tenCrops = () => $("ten").checked && !$("crops").hidden;

function showModel() {
  const model = current();
  const { name, architecture, classes, image_size: size } = model;
  $("about").textContent = say("about", { name, architecture, classes: classes.length, size });
  $("crops").hidden = !model.views.includes(10);
}

$("model").addEventListener("change", () => {
  showModel();
  showSamples();
  if (cards.length) answer([...cards]);
});
$("ten").addEventListener("change", () => cards.length && answer([...cards]));
$("language").addEventListener("click", () => {
  otherLanguage();
  speak();
});

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  $("language").textContent = say("other");
  $("language").lang = language === "zh" ? "en" : "zh-Hans";
  translate(document);
  if (models.length) showModel();
  nameSamples();
  for (const card of cards) card.render();
  if (batch.length && cards.length) report();
}

async function start() {
  const found = await ask("v1/models", { tell: status }).then((response) => response.json());
  models = found.models;
  $("model").replaceChildren(...models.map(({ name }) => make("option", { text: name, value: name })));
  $("model").value = found.default;
  $("choice").hidden = models.length < 2;
  showModel();
  showSamples();
}

speak();
const ready = start(); // pictures may come before it is done
ready.then(() => status(""), (error) => status(error.message));
