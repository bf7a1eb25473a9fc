// The training of a served run: its state, learning curves, alarms and most confident mistakes. Until it has finished, the
// server is asked again, every two seconds while a process trains it.
import { make, makeFigure } from "./elements.js";
import { send } from "./server.js";
import { join, language, percent, text } from "./texts.js";

const POLL_S = 2, STOPPED_POLL_S = 10;
const place = document.getElementById("training"), find = (selector) => place.querySelector(selector);
let name, training = null, mistakes = null, failure = "", connected = false;
let turn = 0; // of calls: a newer one ends the loop of those before it

const get = (path) => send(`v1/${path}${name ? `?${new URLSearchParams({ model: name })}` : ""}`).then((r) => r.json());

// Follow the training of a model, by default the first one, if it is known. `onNetwork` is called when the served network
// has changed: after a better epoch, and at the end.
export async function followTraining(model, known, onNetwork) {
  const mine = ++turn;
  [name, training, mistakes, failure, connected] = [model, null, null, "", false];
  place.hidden = !known;
  renderTraining();
  for (let before = null; known; before = training) {
    const found = await get("training").catch((error) => ({ error }));
    if (mine !== turn) return;
    connected = !found.error?.unreachable;
    failure = connected ? found.error?.message ?? "" : "";
    training = found.error ? before : found;
    if (!before && training) arrange();
    renderTraining();
    const finished = training?.state === "finished";
    const better = before && (training.best !== before.best || (finished && before.state !== "finished"));
    if (better) onNetwork();
    if (better) mistakes = null;
    showMistakes();
    if (finished) return;
    const seconds = (training?.state === "training" && !failure) || !connected ? POLL_S : STOPPED_POLL_S;
    await new Promise((wake) => setTimeout(wake, 1000 * seconds));
    while (document.hidden) await new Promise((wake) => document.addEventListener("visibilitychange", wake, { once: true }));
    if (mine !== turn) return;
  }
}

// What is being trained stands first and open, what has been trained last and closed.
function arrange() {
  place.open = training.state !== "finished";
  if (training.state === "training") place.parentElement.prepend(place);
}

// Fill the section in the current language.
export function renderTraining() {
  find(".error").textContent = failure;
  find(".error").hidden = !failure;
  find(".state").textContent = connected ? "" : text("connecting");
  if (!training) return;
  const { state, epochs, history, best, alarms } = training, done = history.length, split = splitName();
  const top1 = percent(history.find(({ epoch }) => epoch === best)?.top1 ?? 0);
  const sentences = [describeState(), best && text(epochs > 1 ? "training_best" : "training_only", { best, top1, split })];
  if (state === "training" && best) sentences.push(text("training_try", { best }));
  if (connected) find(".state").textContent = join(sentences);
  renderSteps();
  find(".alarms").replaceChildren(
    ...alarms.map(({ epoch, texts }) => make("li", { text: text("alarm", { epoch, alarm: texts[language] }) })));
  find(".curves").hidden = !done;
  if (!done) return;
  const range = Math.max(state === "training" ? epochs : done, 2);
  const chart = (key, train, val, low, format) => drawChart(text(key), range, low, format, best, [
    ["train", history.map((row) => [row.epoch, row[train]])], ["val", history.map((row) => [row.epoch, row[val]])]]);
  const number = new Intl.NumberFormat(language, { maximumSignificantDigits: 3 });
  const share = new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 });
  find(".charts").replaceChildren(
    chart("accuracy", "train_top1", "top1", null, share), chart("loss", "train_loss", "val_loss", 0, number));
  find(".curves .quiet").textContent = text("curves_note", { split });
  renderMistakes();
}

// Say which epoch is running, or how many there were: a part of one where a limit of steps or time ends within the first.
function describeState() {
  const { state, epochs, history, step, steps, steps_per_epoch: all } = training, done = history.length;
  const part = all && (state === "finished" ? step : steps) < all; // of an epoch
  const counts = { step: count(step), steps: count(steps), all: count(all), epochs, next: done + 1 };
  if (state === "stopped") return text("training_stopped", counts);
  if (state === "training" && done && step >= steps) return text("training_ending");
  if (part) return text(state === "finished" ? "training_finished_part" : "training_part", counts);
  if (state === "training") return text(done ? "training_running" : "training_first", counts);
  const trained = all ? step / all : done;
  return text(trained === 1 ? "training_finished_one" : "training_finished", { done: count(trained) });
}

const count = (n) => (n == null ? "?" : new Intl.NumberFormat(language, { maximumFractionDigits: 1 }).format(n));

function renderSteps() {
  const { state, step, steps, time_budget: budget } = training, bar = find(".steps progress");
  find(".steps").hidden = state !== "training" || !steps;
  Object.assign(bar, { max: steps || 1, value: step });
  const key = budget ? "training_step_budget" : "training_step";
  find(".steps span").textContent = text(key, { step: count(step), steps: count(steps), budget });
  bar.setAttribute("aria-label", text("training"));
}

const splitName = () => ({ val: text("val"), test: text("test") })[training.split];

// ── the most confident mistakes ──────────────────────────────────────────────────────────────────

place.addEventListener("toggle", showMistakes);

async function showMistakes() {
  if (!place.open || mistakes || !training?.best) return;
  const mine = turn, found = await get("mistakes").catch(() => null);
  if (mine !== turn) return;
  mistakes = found;
  renderMistakes();
}

function renderMistakes() {
  find(".mistakes").hidden = !mistakes;
  if (!mistakes) return;
  const { epoch, images, wrong } = mistakes;
  find(".mistakes h2").textContent = text(training.epochs > 1 ? "mistakes" : "mistakes_only", { epoch });
  const counts = { wrong, images, split: splitName() };
  find(".mistakes .quiet").textContent = wrong ? text("mistakes_note", counts) : text("no_mistakes", counts);
  find(".thumbnails").replaceChildren(...mistakes.mistakes.map(({ label, predicted, p, image }) => {
    const caption = text("mistake", { label, predicted, p: percent(p) });
    return image ? makeFigure(image, caption) : make("p", { className: "quiet", text: caption });
  }));
}

// ── charts ───────────────────────────────────────────────────────────────────────────────────────

const WIDTH = 320, LEFT = 46, RIGHT = 12, TOP = 8, BOTTOM = 150; // of the plot, in the units of the SVG's viewBox

// Return a chart of curves [class, [[epoch, value], …]] over the epochs 1 to `epochs`, with a dot at the best one of val.
function drawChart(title, epochs, low, format, best, curves) {
  const figure = document.getElementById("chart").content.firstElementChild.cloneNode(true);
  const svg = figure.querySelector("svg"), values = curves.flatMap(([, points]) => points.map(([, value]) => value));
  const ticks = niceTicks(low ?? Math.min(...values), Math.max(...values));
  const [bottom, top] = [ticks[0], ticks[ticks.length - 1]];
  const x = (epoch) => LEFT + ((epoch - 1) / (epochs - 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => BOTTOM - ((value - bottom) / (top - bottom)) * (BOTTOM - TOP);
  const add = (tag, attributes, content = "") => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = content;
    svg.append(element);
  };
  for (const tick of ticks) {
    add("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) });
    add("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, format.format(tick));
  }
  for (const tick of niceTicks(1, epochs).filter((e) => Number.isInteger(e) && e >= 1 && e <= epochs))
    add("text", { x: x(tick), y: BOTTOM + 16, "text-anchor": "middle" }, String(tick));
  for (const [kind, points] of curves) {
    add("polyline", { class: kind, points: points.map(([epoch, value]) => `${x(epoch)},${y(value)}`).join(" ") });
    for (const [epoch, value] of points)
      if (points.length === 1 || (kind === "val" && epoch === best))
        add("circle", { class: kind, cx: x(epoch), cy: y(value), r: 3.5 });
  }
  svg.setAttribute("aria-label", title);
  figure.querySelector("figcaption").textContent = title;
  return figure;
}

// Return about five round numbers, from below `low` to above `high`.
function niceTicks(low, high) {
  const rough = (high - low || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  const first = Math.floor(low / step + 1e-9), last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
