// The classifier behind the page: a worker computes, so that the page stays alive; where there are no workers, the page.
//
//   const reply = await classifier.call(type, values, onProgress);
//
// type        values                    reply
// load        network, weights          {}; `connect` sends it, and `classifier.ready` is its promise
// classify    source: a Blob, an        {probabilities, confidences, unsure, milliseconds}: the network's own
//             ImageBitmap, or RGBA      probabilities; calibrated ones, to show; whether the highest of these is below
//             {width, height, data}     the run's threshold, or null without one; the time of the network alone
// activations                           {layers: [{name, kind, shape, data}]} of the last image; the first, "pixels", is
//                                       what the network reads, 0…255
// window      layer, channel, y, x      {weights: {shape, data}, window: {shape, data}, bias, sum}
// maxima      source, as in classify   {layers: [the largest value of each channel]}, without edits, of another image
// edit        edits: a list             as classify, for the last image; edits stay until the next list (see Network.forward)
// occlude     size, stride              {rows, columns, confidences, label}: the calibrated confidence in the predicted class
//                                       where a gray square covers the image; onProgress gets the same after each row of squares
//
// A call that fails throws an Error with a `code`: those of ImageError; no-image, before the first; superseded, where
// another image came meanwhile; memory, where there is too little; no-answer, after PATIENCE without a reply or progress;
// failed, for anything else, with the reason as its message.
"use strict";

const PATIENCE = 60_000; // milliseconds: a worker that hangs or was ended says nothing

class Classifier {
  load({ network, weights }) {
    this.about = network;
    this.tensors = readTensors(network.tensors, fromBase64(weights));
    this.network = new Network(network.layers, this.tensors);
    this.steps = Object.fromEntries(network.image.map((step) => [step.step, step]));
    this.edits = [];
    this.turn = 0; // counts the images
    return {};
  }

  async classify({ source }) {
    const turn = ++this.turn, found = await this.read(source);
    if (this.turn !== turn) throw new ImageError("superseded");
    Object.assign(this, found);
    return this.answer();
  }

  async read(source) {
    const image = await openImage(source);
    try {
      const pixels = toPixels(image, this.steps);
      return { pixels, input: normalize(pixels, this.tensors["input.scale"].data, this.tensors["input.shift"].data) };
    } finally {
      image.close();
    }
  }

  answer() {
    this.covered = false;
    const start = performance.now();
    const logits = this.network.forward(this.input, { edits: this.edits }).pop().data;
    const milliseconds = performance.now() - start, { calibration } = this.about, confidences = this.confidences(logits);
    const unsure = calibration ? !(Math.max(...confidences) >= calibration.threshold) : null;
    return { probabilities: softmax(logits), confidences, unsure, milliseconds };
  }

  confidences(logits) {
    return softmax(logits, this.about.calibration ? this.about.calibration.temperature : 1);
  }

  activations() {
    if (this.covered) this.answer();
    const { input: shape } = this.network.layers[0];
    const maps = this.network.layers.map(({ name, kind, output, values }) => ({ name, kind, shape: output, data: values.slice() }));
    return { layers: [{ name: "pixels", kind: "pixels", shape, data: this.pixels.slice() }, ...maps] };
  }

  window({ layer, channel, y, x }) {
    if (this.covered) this.answer();
    return this.network.window(layer, channel, y, x);
  }

  async maxima({ source }) {
    const { input } = await this.read(source);
    this.covered = true;
    const layers = this.network.forward(input).map(({ data, shape: [channels] }) => Float32Array.from({ length: channels }, (_, c) =>
      data.subarray((c * data.length) / channels, ((c + 1) * data.length) / channels).reduce((a, b) => Math.max(a, b))));
    return { layers };
  }

  edit({ edits }) {
    this.edits = edits;
    return this.answer();
  }

  async occlude({ size, stride }, onProgress) {
    const { input, edits } = this, [channels, height, width] = this.network.layers[0].input;
    const run = (x) => this.confidences(this.network.forward(x, { edits }).pop().data);
    this.covered = true; // the network holds the activations of other images
    const before = run(input), label = before.indexOf(Math.max(...before));
    const corners = (length) => Array.from({ length: Math.ceil((length - size) / stride) + 1 }, (_, i) => i * stride);
    const tops = corners(height), lefts = corners(width);
    const found = { rows: tops.length, columns: lefts.length, confidences: [], label };
    for (const top of tops) {
      for (const left of lefts) {
        const covered = input.slice(); // zero is the mean color
        for (let c = 0; c < channels; c++)
          for (let row = top; row < Math.min(top + size, height); row++)
            covered.fill(0, (c * height + row) * width + left, (c * height + row) * width + Math.min(left + size, width));
        found.confidences.push(run(covered)[label]);
        await new Promise((resolve) => setTimeout(resolve)); // for other calls, and for the page without a worker
        this.covered = true;
        if (this.input !== input || this.edits !== edits) throw new ImageError("superseded");
      }
      onProgress(found);
    }
    return found;
  }

  // Returns a reply to a message {id, type, ...values}: {id, ...result}, or {id, error: {code, message}}.
  async reply({ id, type, ...values }, onProgress) {
    try {
      if (!this.input && !["load", "classify"].includes(type)) throw new ImageError("no-image");
      return { id, ...(await this[type](values, onProgress)) };
    } catch (error) {
      const code = error.code || (error instanceof RangeError ? "memory" : "failed"); // of an allocation
      return { id, error: { code, message: String(error.message) } };
    }
  }
}

// Returns the bytes of parts that are each encoded in base64.
function fromBase64(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + Math.floor(part.replace(/=+$/, "").length * 3 / 4), 0));
  let at = 0;
  for (const part of parts) {
    const text = atob(part);
    for (let i = 0; i < text.length; i++) bytes[at++] = text.charCodeAt(i);
  }
  return bytes;
}

// Starts the classifier with the network and the weights of the page; `script` is the element that holds this code.
function connect(script) {
  const waiting = new Map();
  let last = 0, send;
  const settle = ({ id, progress, ...reply }) => {
    const found = waiting.get(id), { error } = reply;
    if (!found) return; // too late
    clearTimeout(found.timer);
    found.timer = progress && giveUpLater(id);
    if (progress) return found.onProgress(progress);
    waiting.delete(id);
    return error ? found.reject(Object.assign(new Error(error.message), error)) : found.resolve(reply);
  };
  const giveUpLater = (id) =>
    setTimeout(settle, PATIENCE, { id, error: { code: "no-answer", message: `no answer within ${PATIENCE / 1000} s` } });
  const here = () => {
    const classifier = new Classifier();
    return (message) => classifier.reply(message, waiting.get(message.id).onProgress).then(settle);
  };
  const there = () => {
    const worker = new Worker(URL.createObjectURL(new Blob([script.textContent], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => settle(data);
    return [worker, (message) => worker.postMessage(message)];
  };
  const call = (type, values = {}, onProgress = () => {}) => new Promise((resolve, reject) => {
    const id = ++last;
    waiting.set(id, { resolve, reject, onProgress, timer: giveUpLater(id) });
    send({ id, type, ...values });
  });
  const parts = [...document.querySelectorAll("script.weights")];
  const network = JSON.parse(document.getElementById("network").textContent);
  const load = () => call("load", { network, weights: parts.map((part) => part.textContent.trim()) });

  const ready = new Promise((resolve, reject) => {
    const alone = () => { send = here(); load().then(resolve, reject); };
    // Without a canvas of its own a worker could not read pixels.
    if (typeof Worker === "undefined" || typeof OffscreenCanvas === "undefined") return alone();
    try {
      const [worker, post] = there();
      send = post;
      worker.onerror = () => { worker.terminate(); alone(); }; // some browsers start no worker from a file
      load().then(resolve, reject).then(() => { worker.onerror = null; });
    } catch {
      alone();
    }
  }).then(() => parts.forEach((part) => part.remove())); // the page need not keep its copy
  return { about: network, ready, call: (...all) => ready.then(() => call(...all)) };
}

if (typeof document === "undefined") {
  const classifier = new Classifier();
  self.onmessage = async ({ data }) => {
    self.postMessage(await classifier.reply(data, (progress) => self.postMessage({ id: data.id, progress })));
  };
}
