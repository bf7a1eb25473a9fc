// Elements with text and children.
export function make(tag, { text = "", ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(text, ...children);
  return element;
}

export function makeFigure(source, caption) {
  const image = make("img", { src: source, alt: caption });
  return make("figure", {}, image, make("figcaption", { text: caption }));
}
