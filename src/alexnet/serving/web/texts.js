// Texts of the page in English and Chinese, which the server puts into the page. {name} is replaced by a value.
const TEXTS = JSON.parse(document.getElementById("texts").textContent);

export let language = sessionStorage.getItem("language") ?? document.documentElement.dataset.start
  ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const otherLanguage = () => (language === "en" ? "zh" : "en");

export function switchLanguage() {
  language = otherLanguage();
  sessionStorage.setItem("language", language);
}

// Return a name with its control characters and bidirectional controls escaped: they would reorder the text around it.
export function visible(name) {
  const escape = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
  return String(name).replace(/[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/gu, escape);
}

export function text(key, values = {}, lang = language) {
  return TEXTS[lang][key].replace(/{(\w+)}/g, (_, name) => visible(values[name]));
}

// Join those of `sentences` that are not empty.
export const join = (sentences) => sentences.filter(Boolean).join(language === "zh" ? "" : " ");

export function percent(p, digits = 1) {
  const options = { style: "percent", maximumFractionDigits: digits, minimumFractionDigits: digits };
  return new Intl.NumberFormat(language, options).format(p);
}

// Fill every element below `root` that has data-text; textContent, so that no text can become markup.
export function translate(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
}
