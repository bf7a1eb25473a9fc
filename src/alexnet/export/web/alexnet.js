// An AlexNet computed in plain JavaScript, from preprocessed pixels to logits, one image at a time.
//
// `layers` is the list that `alexnet arch NAME` prints: each layer has a name, a kind and the shapes of its input and
// output, (channels, height, width) for maps and (units) for vectors. Values lie in flat arrays, row after row and
// channel after channel: the value of channel c at row y and column x of a C×H×W map is at index (c · H + y) · W + x.
//
// Read in this order: LAYERS, a function for each kind of layer; Network, which runs them; multiply and gather, on
// which nearly all of the time is spent; readTensors, the weights as the file stores them.
"use strict";

// ── the kinds of layers ─────────────────────────────────────────────────────────────────────────

// Each function takes a layer and its tensors and returns a function (x, y) that computes the layer's output y from
// its input x. Both are Float32Arrays; y may hold the values of the previous image.
const LAYERS = {
  // y[o] = bias[o] + Σ weight[o, c, i, j] · x[c, stride · row + i, stride · column + j], in groups of channels.
  conv(layer, { weight, bias }) {
    const { kernel, stride, padding = 0, groups, input: [channels, height, width] } = layer;
    const [filters, rows, columns] = layer.output;
    const perGroup = channels / groups, filtersPerGroup = filters / groups;
    const taps = perGroup * kernel * kernel; // values that a filter reads
    const positions = rows * columns;
    const packed = packFilters(weight.data, groups, filtersPerGroup, taps);
    const gathered = new Float32Array(BLOCK * taps);

    // The input with its zeros around it, so that every window lies inside.
    const paddedWidth = width + 2 * padding, plane = paddedWidth * (height + 2 * padding);
    const padded = padding ? new Float32Array(channels * plane) : null;

    // Where a filter's values lie, relative to the window's corner, and where the corners are.
    const offsets = new Int32Array(taps), corners = new Int32Array(positions);
    for (let c = 0, at = 0; c < perGroup; c++)
      for (let i = 0; i < kernel; i++)
        for (let j = 0; j < kernel; j++) offsets[at++] = c * plane + i * paddedWidth + j;
    for (let row = 0, at = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) corners[at++] = stride * (row * paddedWidth + column);

    return (x, y) => {
      for (let from = 0, c = 0; padded && c < channels; c++)
        for (let row = 0; row < height; row++, from += width)
          padded.set(x.subarray(from, from + width), c * plane + (row + padding) * paddedWidth + padding);
      for (let o = 0; o < filters; o++) y.fill(bias ? bias.data[o] : 0, o * positions, (o + 1) * positions);
      for (let group = 0; group < groups; group++) {
        const source = (padded || x).subarray(group * perGroup * plane, (group + 1) * perGroup * plane);
        const target = y.subarray(group * filtersPerGroup * positions, (group + 1) * filtersPerGroup * positions);
        multiply(packed[group], gathered, source, offsets, corners, target, filtersPerGroup);
      }
    };
  },

  // y[o] = bias[o] + Σ weight[o, i] · x[i]. The weights lie input by input, so that inputs that are zero are skipped:
  // most of them, after a ReLU. 8-bit weights are multiplied as they are, and the sum by the scale of its output.
  linear(layer, { weight, bias }) {
    const inputs = layer.input[0], outputs = layer.output[0];
    const used = new Int32Array(inputs + 3), values = new Float32Array(inputs + 3);
    const sums = new Float32Array(outputs);
    return (x, y) => {
      let count = 0;
      for (let i = 0; i < inputs; i++) if (x[i] !== 0) { used[count] = i * outputs; values[count++] = x[i]; }
      values.fill(0, count, count + 3); // up to a multiple of four
      sums.fill(0);
      for (let n = 0; n < count; n += 4) accumulate(weight.data, sums, used, values, n);
      for (let o = 0; o < outputs; o++) y[o] = sums[o] * (weight.scale ? weight.scale[o] : 1) + bias.data[o];
    };
  },

  relu: () => (x, y) => { for (let i = 0; i < y.length; i++) y[i] = x[i] > 0 ? x[i] : 0; },
  tanh: () => (x, y) => { for (let i = 0; i < y.length; i++) y[i] = Math.tanh(x[i]); },
  sigmoid: () => (x, y) => { for (let i = 0; i < y.length; i++) y[i] = 1 / (1 + Math.exp(-x[i])); },

  // Local response normalization: y = x / (k + alpha/size · Σ x²)^beta, over `size` neighboring channels of a tower.
  lrn(layer) {
    const { size, alpha, beta, k, towers } = layer.norm, power = inversePower(beta);
    const [channels, height, width] = layer.output, plane = height * width, perTower = channels / towers;
    const before = size >> 1, after = (size - 1) >> 1, sums = new Float64Array(plane);
    return (x, y) => {
      for (let first = 0; first < channels; first += perTower) {
        sums.fill(0);
        for (let c = -after; c < perTower; c++) { // a window that moves by a channel gains one and loses another
          addSquares(x, sums, c + after < perTower ? (first + c + after) * plane : -1, 1);
          addSquares(x, sums, c - before > 0 ? (first + c - before - 1) * plane : -1, -1);
          for (let at = (first + c) * plane, i = 0; c >= 0 && i < plane; i++, at++)
            y[at] = x[at] * power(k + alpha / size * sums[i]);
        }
      }
    };
  },

  // The same over size×size pixels of a channel, with zeros beyond its edges: `rnorm` of the 2012 code.
  rnorm(layer) {
    const { size, alpha, beta, k } = layer.norm, power = inversePower(beta);
    const [channels, height, width] = layer.output, plane = height * width;
    const before = size >> 1, after = (size - 1) >> 1, rowSums = new Float32Array(plane);
    return (x, y) => {
      for (let c = 0; c < channels; c++) {
        const map = x.subarray(c * plane, (c + 1) * plane);
        for (let row = 0, at = 0; row < height; row++)
          for (let column = 0; column < width; column++, at++) {
            let sum = 0;
            for (let j = Math.max(0, column - before); j <= Math.min(width - 1, column + after); j++)
              sum += map[row * width + j] ** 2;
            rowSums[at] = sum;
          }
        for (let row = 0, at = 0; row < height; row++)
          for (let column = 0; column < width; column++, at++) {
            let sum = 0;
            for (let i = Math.max(0, row - before); i <= Math.min(height - 1, row + after); i++)
              sum += rowSums[i * width + column];
            y[c * plane + at] = map[at] * power(k + alpha / (size * size) * sum);
          }
      }
    };
  },

  // Batch normalization with the averages of training: a factor and a shift for each channel.
  batchnorm(layer, { weight, bias, running_mean, running_var }) {
    const [channels, height, width] = layer.output, plane = height * width;
    const factor = weight.data.map((w, c) => w / Math.sqrt(running_var.data[c] + 1e-5)); // torch's epsilon
    const shift = bias.data.map((b, c) => b - running_mean.data[c] * factor[c]);
    return (x, y) => {
      for (let c = 0, at = 0; c < channels; c++)
        for (let i = 0; i < plane; i++, at++) y[at] = x[at] * factor[c] + shift[c];
    };
  },

  maxpool: (layer) => pool(layer, slidingWindow, false),
  avgpool: (layer) => pool(layer, slidingWindow, true),
  adaptiveavgpool: (layer) => pool(layer, equalWindow, true),

  // Zeros at the right and bottom, for the rounded-up sizes of the 2012 code.
  pad(layer) {
    const [channels, height, width] = layer.input, [, paddedHeight, paddedWidth] = layer.output;
    return (x, y) => { // what lies beyond stays zero
      for (let c = 0, from = 0; c < channels; c++)
        for (let row = 0; row < height; row++, from += width)
          y.set(x.subarray(from, from + width), (c * paddedHeight + row) * paddedWidth);
    };
  },

  flatten: () => (x, y) => y.set(x),
  dropout: () => (x, y) => y.set(x), // drops units in training only
};

function inversePower(beta) {
  return beta === 0.75 ? (d) => 1 / (Math.sqrt(d) * Math.sqrt(Math.sqrt(d))) : (d) => d ** -beta; // roots are faster
}

function addSquares(x, sums, from, sign) {
  if (from >= 0) for (let i = 0; i < sums.length; i++) sums[i] += sign * x[from + i] ** 2;
}

// Where window i begins and ends. The last window of a rounded-up size ends at the edge.
function slidingWindow({ stride, kernel }, i, outputs, inputs) {
  return [i * stride, Math.min(i * stride + kernel, inputs)];
}

function equalWindow(layer, i, outputs, inputs) {
  return [Math.floor(i * inputs / outputs), Math.ceil((i + 1) * inputs / outputs)];
}

// The largest value, or the mean, of each window.
function pool(layer, window, mean) {
  const [channels, height, width] = layer.input, [, rows, columns] = layer.output;
  const vertical = Array.from({ length: rows }, (_, i) => window(layer, i, rows, height));
  const horizontal = Array.from({ length: columns }, (_, i) => window(layer, i, columns, width));
  return (x, y) => {
    let at = 0;
    for (let c = 0; c < channels; c++)
      for (const [top, bottom] of vertical)
        for (const [left, right] of horizontal) {
          let sum = 0, largest = -Infinity;
          for (let row = top; row < bottom; row++)
            for (let i = (c * height + row) * width + left, end = i + right - left; i < end; i++) {
              sum += x[i];
              if (x[i] > largest) largest = x[i];
            }
          y[at++] = mean ? sum / ((bottom - top) * (right - left)) : largest;
        }
  };
}

// ── the network ─────────────────────────────────────────────────────────────────────────────────

class Network {
  // `tensors`: {"conv1.weight": {data, scale}, …}, as `readTensors` returns them.
  constructor(layers, tensors) {
    this.layers = layers.map((layer) => {
      const own = Object.entries(tensors).filter(([name]) => name.startsWith(`${layer.name}.`));
      const parts = Object.fromEntries(own.map(([name, tensor]) => [name.slice(layer.name.length + 1), tensor]));
      const output = new Float32Array(layer.output.reduce((a, b) => a * b));
      return { ...layer, parts, values: output, compute: LAYERS[layer.kind](layer, parts) };
    });
    this.towers = Math.max(...layers.map((layer) => layer.groups || 1));
  }

  // Runs the network on preprocessed pixels and returns the activations of all layers, the logits last:
  // [{name, kind, shape, data}]. The next call overwrites the data.
  //
  // Edits change what is computed: {layer} skips a layer whose input and output have the same shape, such as a norm;
  // {layer, channel} sets a channel, or a unit of a vector, to zero; {tower} does so with all channels of a tower.
  forward(input, { edits = [] } = {}) {
    this.input = input;
    let x = input;
    for (const layer of this.layers) {
      const skipped = edits.some((edit) => edit.layer === layer.name && edit.channel === undefined);
      if (skipped && layer.values.length === x.length) layer.values.set(x);
      else layer.compute(x, layer.values);
      for (const edit of edits) {
        const plane = layer.values.length / layer.output[0], tower = layer.values.length / this.towers;
        if (edit.layer === layer.name && edit.channel !== undefined)
          layer.values.fill(0, edit.channel * plane, (edit.channel + 1) * plane);
        if (layer.kind === "conv" && edit.tower !== undefined)
          layer.values.fill(0, edit.tower * tower, (edit.tower + 1) * tower);
      }
      x = layer.values;
    }
    return this.layers.map(({ name, kind, output, values }) => ({ name, kind, shape: output, data: values }));
  }

  // What a value of a convolution or linear layer was computed from: the weights of the filter, the window that it read
  // (zeros beyond the edges), both as {shape, data}, the bias and the sum.
  window(name, channel, y = 0, x = 0) {
    const index = this.layers.findIndex((layer) => layer.name === name);
    const layer = this.layers[index], { weight, bias } = layer.parts;
    const read = index ? this.layers[index - 1].values : this.input;
    const [channels, height, width] = [...layer.input, 1, 1];
    const { kernel = 1, stride = 1, padding = 0, groups = 1 } = layer;
    const perGroup = channels / groups, first = Math.floor(channel / (layer.output[0] / groups)) * perGroup;
    const taps = perGroup * kernel * kernel, weights = new Float32Array(taps), window = new Float32Array(taps);
    let sum = bias ? bias.data[channel] : 0;
    for (let t = 0; t < taps; t++) {
      const c = first + Math.floor(t / (kernel * kernel)), j = t % kernel, i = Math.floor(t / kernel) % kernel;
      const row = y * stride + i - padding, column = x * stride + j - padding;
      const inside = row >= 0 && row < height && column >= 0 && column < width;
      window[t] = inside ? read[(c * height + row) * width + column] : 0;
      weights[t] = layer.kind === "conv" ? weight.data[channel * taps + t]
        : weight.data[t * layer.output[0] + channel] * (weight.scale ? weight.scale[channel] : 1);
      sum += weights[t] * window[t];
    }
    const shape = [perGroup, kernel, kernel];
    const shown = { weights: { shape, data: weights }, window: { shape, data: window } };
    return { ...shown, bias: bias ? bias.data[channel] : 0, sum };
  }
}

// The probabilities of classes: those of the network at temperature 1, calibrated ones at a fitted temperature.
function softmax(logits, temperature = 1) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((z) => Math.exp((z - highest) / temperature));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// ── the arithmetic ──────────────────────────────────────────────────────────────────────────────

const BLOCK = 32; // positions whose windows are gathered at once: they stay in the processor's cache

// Filters in panels of four, their weights side by side: packed[group] holds w[0][0], w[1][0], w[2][0], w[3][0],
// w[0][1], … Missing filters of the last panel are zeros.
function packFilters(weights, groups, filters, taps) {
  return Array.from({ length: groups }, (_, group) => {
    const packed = new Float32Array(Math.ceil(filters / 4) * 4 * taps);
    for (let o = 0; o < filters; o++)
      for (let t = 0; t < taps; t++)
        packed[(o - o % 4) * taps + t * 4 + o % 4] = weights[(group * filters + o) * taps + t];
    return packed;
  });
}

// Adds to target (filters × positions) the product of filters and windows. A window has its values in `source`, at
// `offsets` from its corner. Windows are gathered in panels of four, as the filters are.
function multiply(packed, gathered, source, offsets, corners, target, filters) {
  const taps = offsets.length, positions = corners.length;
  for (let start = 0; start < positions; start += BLOCK) {
    const end = Math.min(start + BLOCK, positions);
    for (let p = start; p < end; p += 4) gather(gathered, (p - start) * taps, source, offsets, corners, p);
    for (let o = 0; o < filters; o += 4)
      for (let p = start; p < end; p += 4) {
        multiplyPanels(packed, o * taps, gathered, (p - start) * taps, taps);
        const height = Math.min(4, filters - o), width = Math.min(4, end - p);
        for (let i = 0; i < height; i++)
          for (let j = 0; j < width; j++) target[(o + i) * positions + p + j] += TILE[i * 4 + j];
      }
  }
}

function gather(gathered, at, source, offsets, corners, p) {
  const last = corners.length - 1; // repeated where fewer than four are left
  const c0 = corners[p], c1 = corners[Math.min(p + 1, last)];
  const c2 = corners[Math.min(p + 2, last)], c3 = corners[Math.min(p + 3, last)];
  for (let t = 0; t < offsets.length; t++, at += 4) {
    const offset = offsets[t];
    gathered[at] = source[offset + c0];
    gathered[at + 1] = source[offset + c1];
    gathered[at + 2] = source[offset + c2];
    gathered[at + 3] = source[offset + c3];
  }
}

const TILE = new Float32Array(16);

// TILE[i, j] = Σ a[t, i] · b[t, j]. Sixteen sums stay in registers, so that 8 values that are read serve 16 products.
function multiplyPanels(a, i, b, j, taps) {
  let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
  let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
  for (const end = i + 4 * taps; i < end; i += 4, j += 4) {
    const b0 = b[j], b1 = b[j + 1], b2 = b[j + 2], b3 = b[j + 3];
    let w = a[i]; s00 += w * b0; s01 += w * b1; s02 += w * b2; s03 += w * b3;
    w = a[i + 1]; s10 += w * b0; s11 += w * b1; s12 += w * b2; s13 += w * b3;
    w = a[i + 2]; s20 += w * b0; s21 += w * b1; s22 += w * b2; s23 += w * b3;
    w = a[i + 3]; s30 += w * b0; s31 += w * b1; s32 += w * b2; s33 += w * b3;
  }
  TILE[0] = s00; TILE[1] = s01; TILE[2] = s02; TILE[3] = s03;
  TILE[4] = s10; TILE[5] = s11; TILE[6] = s12; TILE[7] = s13;
  TILE[8] = s20; TILE[9] = s21; TILE[10] = s22; TILE[11] = s23;
  TILE[12] = s30; TILE[13] = s31; TILE[14] = s32; TILE[15] = s33;
}

// Adds four inputs of a linear layer, each times its weights, to the sums of all outputs.
function accumulate(weights, sums, used, values, n) {
  const a = used[n], b = used[n + 1], c = used[n + 2], d = used[n + 3];
  const x0 = values[n], x1 = values[n + 1], x2 = values[n + 2], x3 = values[n + 3];
  for (let o = 0; o < sums.length; o++)
    sums[o] += x0 * weights[a + o] + x1 * weights[b + o] + x2 * weights[c + o] + x3 * weights[d + o];
}

// ── the weights ─────────────────────────────────────────────────────────────────────────────────

// Returns {name: {data, scale}} from the bytes of all tensors, one after another. `index` lists their names, sizes and
// types: f32; f16, expanded to 32 bits here; i8, whose values are multiplied by the tensor NAME.scale, one per output.
function readTensors(index, bytes) {
  const tensors = {};
  let at = 0;
  for (const { name, type, size } of index) {
    const Values = { f32: Float32Array, f16: Uint16Array, i8: Int8Array }[type], width = Values.BYTES_PER_ELEMENT;
    const values = new Values(bytes.slice(at, at + size * width).buffer);
    tensors[name] = { data: type === "f16" ? Float32Array.from(values, (h) => HALVES[h]) : values };
    at += size * width;
  }
  for (const name of Object.keys(tensors))
    if (`${name}.scale` in tensors) tensors[name].scale = tensors[`${name}.scale`].data;
  return tensors;
}

const HALVES = Float32Array.from({ length: 65536 }, (_, h) => { // the value of each 16-bit float
  const exponent = (h >> 10) & 31, fraction = h & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : fraction * 2 ** -24;
  return h & 0x8000 ? -size : size;
});
