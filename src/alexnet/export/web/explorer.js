// The explorer: what each layer computed of the image, one value worked out, and what changes if a part is switched off.
//
// A map is drawn in blue where it is positive and in orange where it is negative, the stronger the further from zero.
"use strict";

const LIGHT = [[0, 114, 178], [213, 94, 0]], DARK = [[86, 180, 233], [230, 159, 0]]; // of positive and negative values
const COLORS = matchMedia("(prefers-color-scheme: dark)").matches ? DARK : LIGHT;
const STRONGEST = 4; // samples, and input channels in a sum
const number = (value) => value.toPrecision(3);
const largestSize = (data) => data.reduce((high, v) => Math.max(high, Math.abs(v)), 0);

const explorer = {
  layers: [], // of `activations`
  at: { layer: 1, channel: 0, y: 0, x: 0 }, // the chosen value
  channelsOff: [], // edits
  turn: 0, // counts the values that were chosen
  maxima: null, // of each layer and channel, for each sample

  edits() {
    const parts = [...document.querySelectorAll("#edits input:checked")].map((box) => JSON.parse(box.value));
    return [...parts, ...this.channelsOff];
  },

  async update() {
    if (!byId("explorer").open) return;
    const found = await classifier.call("activations").catch((error) => error);
    if (!found.layers) return found.code === "no-image" ? undefined : showError(found);
    this.layers = found.layers;
    byId("seen").hidden = false;
    byId("occlusion").textContent = "";
    this.listLayers();
    drawPixels(byId("input"), this.layers[0]);
    await this.choose({});
    if (!this.maxima) await this.readSamples();
  },

  // A button for each layer that has values of its own.
  listLayers() {
    if (byId("layers").children.length) return;
    this.layers.forEach(({ name, shape }, i) => {
      const button = element("button", name, { type: "button", title: shape.join("×") });
      button.addEventListener("click", () => this.choose({ layer: i, channel: 0, y: 0, x: 0 }));
      byId("layers").append(button);
    });
  },

  // Chooses a value, within the shape of its layer, and shows it.
  async choose(change) {
    Object.assign(this.at, change);
    const layer = this.layers[this.at.layer], [channels, height = 1, width = 1] = layer.shape;
    const within = (value, count) => Math.min(Math.max(Math.trunc(value) || 0, 0), count - 1);
    const channel = (this.at.channel = within(this.at.channel, channels));
    this.at.y = within(this.at.y, height);
    this.at.x = within(this.at.x, width);
    [...byId("layers").children].forEach((button, i) => button.setAttribute("aria-pressed", i === this.at.layer));
    for (const [name, count] of Object.entries({ channel: channels, y: height, x: width }))
      Object.assign(byId(name), { value: this.at[name], max: count - 1, disabled: count === 1 });
    const largest = largestSize(layer.data);
    byId("shape").textContent = format("layer", { name: layer.name, kind: layer.kind, shape: layer.shape.join("×"), largest: number(largest) });
    drawMaps(byId("maps"), layer.data, layer.shape, largest, channel);
    const plane = height * width, map = layer.data.subarray(channel * plane, (channel + 1) * plane);
    drawMaps(byId("map"), map, [1, height, width], largest);
    mark(byId("map"), this.at);
    this.showSamples();
    await this.showSum(map[this.at.y * width + this.at.x]);
  },

  // The filter, the window that it read, and the sum.
  async showSum(value) {
    const { layer, channel, y, x } = this.at, { name, kind } = this.layers[layer], place = { name, channel, y, x, value: number(value) };
    const turn = ++this.turn;
    byId("value").replaceChildren(element("p", format("value", place)));
    if (kind !== "conv" && kind !== "linear") return;
    const { weights, window, bias, sum } = await classifier.call("window", { layer: name, channel, y, x });
    if (this.turn !== turn) return; // another was chosen meanwhile
    const [channels, kernel] = weights.shape, taps = kernel * kernel;
    const products = weights.data.map((w, i) => w * window.data[i]);
    const partial = Array.from({ length: channels }, (_, c) => products.subarray(c * taps, (c + 1) * taps).reduce((a, b) => a + b, 0));
    const order = [...partial.keys()].sort((a, b) => Math.abs(partial[b]) - Math.abs(partial[a])), top = order.slice(0, STRONGEST);
    const rest = order.slice(STRONGEST).reduce((total, c) => total + partial[c], 0);
    const rows = top.map((c) => [format("from_channel", { channel: c }), partial[c]]);
    if (channels > STRONGEST) rows.push([format("from_others", { n: channels - STRONGEST }), rest]);
    const at = top[0] * taps, steps = Array.from(products.subarray(at, at + taps), (_, i) => [number(weights.data[at + i]), number(window.data[at + i])]);
    const details = element("details");
    details.append(
      element("summary", format("products", { channel: top[0] })),
      table(Array.from({ length: kernel }, (_, i) => steps.slice(i * kernel, (i + 1) * kernel).map(([w, v]) => `${w} · ${v}`))),
    );
    if (Math.abs(sum - value) > 1e-3 * (1 + Math.abs(sum))) byId("value").append(element("p", texts.is_off));
    byId("value").append(
      figure(texts.filter, weights.data, weights.shape), figure(texts.window, window.data, window.shape), figure(texts.product, products, weights.shape),
      table([...rows, [texts.bias, bias], [texts.sum, sum]].map(([text, v]) => [text, number(v)])), details,
    );
  },

  // The samples that excite the chosen channel most.
  async readSamples() {
    this.maxima = [];
    for (const { url } of samples) {
      const found = await classifier.call("maxima", { source: toBlob(url) }).catch(() => null);
      this.maxima.push(found);
    }
    this.showSamples();
  },

  showSamples() {
    const { layer, channel } = this.at, known = [...(this.maxima || []).keys()].filter((i) => this.maxima[i] && layer);
    const value = (i) => this.maxima[i].layers[layer - 1][channel];
    const best = known.sort((a, b) => value(b) - value(a)).slice(0, STRONGEST);
    byId("strongest").replaceChildren(...best.map((i) => {
      const item = element("li");
      item.append(element("img", "", { src: samples[i].url, alt: sampleName(i) }), element("span", number(value(i))));
      return item;
    }));
  },

  async edit() {
    try {
      const edits = this.edits();
      byId("restore").hidden = !edits.length;
      showAnswer(await classifier.call("edit", { edits }), !edits.length);
      await this.update();
    } catch (error) {
      showError(error);
    }
  },

  restore() {
    document.querySelectorAll("#edits input").forEach((box) => { box.checked = false; });
    this.channelsOff = [];
    this.edit();
  },

  // Covers one part of the image after another.
  async occlude() {
    const { shape } = this.layers[0], size = Math.max(2, Math.round(shape[1] / 4)), stride = Math.max(1, Math.round(size / 2));
    const note = byId("occlusion");
    const draw = ({ columns, confidences, label }) => {
      const lowest = Math.min(...confidences), highest = Math.max(...confidences);
      note.textContent = format("occlusion", { label: classes[label], lowest: percent(lowest), highest: percent(highest) });
      drawPixels(byId("input"), this.layers[0]);
      const context = byId("input").getContext("2d");
      confidences.forEach((p, i) => {
        const offset = Math.round((size - stride) / 2);
        context.fillStyle = `rgba(${COLORS[1]}, ${(0.8 * (highest - p)) / Math.max(highest - lowest, 0.01)})`;
        context.fillRect((i % columns) * stride + offset, Math.floor(i / columns) * stride + offset, stride, stride);
      });
    };
    await classifier.call("occlude", { size, stride }, draw).then(draw, (error) => error.code === "superseded" || showError(error));
  },
};

// ── drawing ─────────────────────────────────────────────────────────────────────────────────────

// Draws C×H×W values, or a vector, as a grid of maps, a pixel for each value; `chosen` gets a frame.
function drawMaps(canvas, data, [channels, height = 1, width = 1], largest, chosen = -1) {
  const most = width > 1 ? canvas.clientWidth / 40 : Infinity; // so that a finger can choose one
  const across = Math.max(1, Math.floor(Math.min(channels, Math.sqrt((1.5 * channels * height) / width), most || Infinity)));
  const down = Math.ceil(channels / across), image = new ImageData(across * (width + 1) + 1, down * (height + 1) + 1);
  const put = (x, y, [r, g, b], alpha) => image.data.set([r, g, b, alpha], 4 * (y * image.width + x));
  for (let c = 0, at = 0; c < channels; c++) {
    const left = (c % across) * (width + 1) + 1, top = Math.floor(c / across) * (height + 1) + 1;
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++, at++) put(left + x, top + y, COLORS[data[at] < 0 ? 1 : 0], (255 * Math.abs(data[at])) / (largest || 1));
    if (c !== chosen) continue;
    for (let x = -1; x <= width; x++) for (const y of [-1, height]) put(left + x, top + y, COLORS[1], 255);
    for (let y = -1; y <= height; y++) for (const x of [-1, width]) put(left + x, top + y, COLORS[1], 255);
  }
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.across = across;
}

// Draws the pixels that the network reads, in color.
function drawPixels(canvas, { data, shape: [channels, height, width] }) {
  const image = new ImageData(width, height), plane = height * width;
  for (let i = 0; i < plane; i++)
    image.data.set([data[i], data[i + (channels > 1) * plane], data[i + 2 * (channels > 1) * plane], 255], 4 * i);
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Frames a value of the single map on a canvas, which it enlarges so that the frame is fine.
function mark(canvas, { x, y }) {
  const small = createCanvas(canvas.width, canvas.height), scale = Math.ceil(256 / canvas.width), context = canvas.getContext("2d");
  small.getContext("2d").drawImage(canvas, 0, 0);
  Object.assign(canvas, { width: scale * canvas.width, height: scale * canvas.height });
  Object.assign(context, { imageSmoothingEnabled: false, strokeStyle: `rgb(${COLORS[1]})`, lineWidth: 3 });
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  context.strokeRect(scale * (x + 1), scale * (y + 1), scale, scale);
}

function figure(caption, data, shape) {
  const canvas = element("canvas", "", { role: "img", ariaLabel: caption }), whole = element("figure");
  drawMaps(canvas, data, shape, largestSize(data));
  whole.append(canvas, element("figcaption", caption));
  return whole;
}

function table(rows) {
  const found = element("table"), box = element("div", "", { className: "scroll", tabIndex: 0 });
  rows.forEach((cells) => {
    const row = found.insertRow();
    cells.forEach((text) => { row.insertCell().textContent = text; });
  });
  box.append(found);
  return box;
}

// ── controls ────────────────────────────────────────────────────────────────────────────────────

// The value under the pointer, on a canvas of `drawMaps` with so many maps.
function pointed({ target, clientX, clientY }, [channels, height = 1, width = 1]) {
  const box = target.getBoundingClientRect(), { across } = target, down = Math.ceil(channels / across);
  const place = (share, count) => Math.max(0, Math.floor(share * (count + 1)) - 1); // a pixel of margin before and between maps
  const x = place((clientX - box.left) / box.width, across * (width + 1)), y = place((clientY - box.top) / box.height, down * (height + 1));
  return { channel: Math.floor(y / (height + 1)) * across + Math.floor(x / (width + 1)), y: y % (height + 1), x: x % (width + 1) };
}

byId("explorer").addEventListener("toggle", () => explorer.update());
byId("maps").addEventListener("click", (event) => explorer.choose(pointed(event, explorer.layers[explorer.at.layer].shape)));
byId("map").addEventListener("click", (event) => {
  const [, ...size] = explorer.layers[explorer.at.layer].shape, { y, x } = pointed(event, [1, ...size]);
  explorer.choose({ y, x });
});
for (const name of ["channel", "y", "x"]) byId(name).addEventListener("change", () => explorer.choose({ [name]: Number(byId(name).value) }));
byId("occlude").addEventListener("click", () => explorer.occlude());
byId("restore").addEventListener("click", () => explorer.restore());
byId("off").addEventListener("click", () => {
  explorer.channelsOff.push({ layer: explorer.layers[explorer.at.layer].name, channel: explorer.at.channel });
  explorer.edit();
});

// Switches of the norms, and of the towers if there are two.
function addSwitch(text, edit) {
  const label = element("label"), box = element("input", "", { type: "checkbox", value: JSON.stringify(edit) });
  box.addEventListener("change", () => explorer.edit());
  label.append(box, ` ${text}`);
  byId("edits").append(label);
}

classifier.about.layers.filter(({ kind }) => ["lrn", "rnorm", "batchnorm"].includes(kind))
  .forEach(({ name }) => addSwitch(format("without", { name }), { layer: name }));
if (classifier.about.layers.some(({ groups }) => groups === 2))
  [0, 1].forEach((tower) => addSwitch(format("without_tower", { number: tower + 1 }), { tower }));
