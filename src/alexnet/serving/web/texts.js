// Texts of the page in English and Chinese, which the server puts into the page. {name} is replaced by a value.
const TEXTS = JSON.parse(document.getElementById("texts").textContent);

export let language = sessionStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const otherLanguage = () => (language === "en" ? "zh" : "en");

export function switchLanguage() {
  language = otherLanguage();
  sessionStorage.setItem("language", language);
}

export function text(key, values = {}, lang = language) {
  return TEXTS[lang][key].replace(/{(\w+)}/g, (_, name) => values[name]);
}

export function percent(p) {
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1, minimumFractionDigits: 1 }).format(p);
}

// Fill every element below `root` that has data-text; textContent, so that no text can become markup.
export function translate(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
}
