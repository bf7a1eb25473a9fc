"use strict";

const { classes, texts } = classifier.about, result = document.getElementById("result");
const format = (key, values) => texts[key].replace(/{(\w+)}/g, (_, name) => values[name]);
const percent = (p) => `${(100 * p).toFixed(1)}%`;

function element(name, text = "", properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...properties });
}

async function show(source) {
  try {
    const { confidences, unsure, milliseconds } = await classifier.call("classify", { source });
    const best = [...confidences.keys()].sort((a, b) => confidences[b] - confidences[a]).slice(0, 5);
    const bars = best.map((i) => {
      const row = element("div", "", { className: "bar" }), bar = element("div");
      bar.style.width = percent(confidences[i]);
      row.append(element("span", classes[i]), element("span", percent(confidences[i])), bar);
      return row;
    });
    const note = unsure ? [element("p", texts.unsure, { className: "unsure" })] : [];
    result.replaceChildren(...note, ...bars, element("p", format("time", { ms: milliseconds.toFixed(1) }), { className: "quiet" }));
  } catch (error) {
    const text = texts[`error_${error.code}`] || format("error_failed", { reason: error.message });
    result.replaceChildren(element("p", text, { className: "warning" }));
  }
}

const open = (files) => { if (files.length) show(files[0]); };
document.getElementById("file").addEventListener("change", (event) => open(event.target.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files); });
document.addEventListener("paste", (event) => open(event.clipboardData.files));

JSON.parse(document.getElementById("sample-images").textContent).forEach(({ url, label }, i) => {
  const name = format("sample", { number: i + 1, label: label === null ? "" : classes[label] }).trim();
  const button = element("button", "", { type: "button", title: name }), image = element("img", "", { src: url, alt: name });
  button.addEventListener("click", () => show(toBlob(url)));
  button.append(image);
  document.getElementById("samples").append(element("li"));
  document.getElementById("samples").lastChild.append(button);
});

// A data URL as a file; fetch() would be refused by the page's own security policy.
function toBlob(url) {
  const [head, body] = url.split(","), type = head.slice(5, head.indexOf(";"));
  return new Blob([Uint8Array.from(atob(body), (c) => c.charCodeAt(0))], { type });
}

classifier.ready.then(() => result.replaceChildren(), (error) => {
  result.replaceChildren(element("p", format("error_failed", { reason: error.message }), { className: "warning" }));
});
