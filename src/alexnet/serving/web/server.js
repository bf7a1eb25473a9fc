// Requests to the server: a few at a time, retried while it is busy, with its token if it requires one; and shrinking of
// images that exceed its limits.
import { language, text } from "./texts.js";

const MAX_REQUESTS = 4, MAX_TRIES = 20, MAX_WAIT_S = 30;
let free = MAX_REQUESTS;
const queue = [];

// Return the response for `path`, relative to the page. Throws an Error whose message is shown to the user.
// `body` is posted, `notify` receives a sentence while the server is busy, `signal` aborts the request.
export async function send(path, { body, type, notify = () => {}, signal } = {}) {
  if (free > 0) free--;
  else await new Promise((start) => queue.push(start)); // whoever finishes hands over its slot
  try {
    return await sendNow(path, { body, type, notify, signal });
  } finally {
    if (queue.length) queue.shift()();
    else free++;
  }
}

async function sendNow(path, { body, type, notify, signal }) {
  for (let tries = 1; ; tries++) {
    signal?.throwIfAborted();
    const token = sessionStorage.getItem("token"), headers = { "Accept-Language": language };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body) headers["Content-Type"] = type || "application/octet-stream";
    const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal }).catch((error) => {
      throw error.name === "AbortError" ? error : Object.assign(new Error(text("unreachable")), { unreachable: true });
    });
    if (response.ok) return response;
    if (response.status === 401 && (await newToken(token))) continue;
    if (response.status === 503 && tries < MAX_TRIES) {
      const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 0.2), MAX_WAIT_S);
      notify(text("busy", { seconds }));
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    if (response.status === 401) throw new Error(text("token_none"));
    const { error } = await response.json().catch(() => ({}));
    throw new Error(error ? text("server_error", { error }) : text("failed", { status: response.status }));
  }
}

// ── the token ────────────────────────────────────────────────────────────────────────────────────

let prompt = null;

// Return whether there is another token than `rejected`, asking the user once for all waiting requests.
async function newToken(rejected) {
  if ((sessionStorage.getItem("token") ?? "") !== (rejected ?? "")) return true;
  prompt ??= promptForToken(Boolean(rejected)).finally(() => (prompt = null));
  return prompt;
}

function promptForToken(wrong) {
  const dialog = document.getElementById("token"), field = dialog.querySelector("input");
  dialog.querySelector(".error").hidden = !wrong;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const token = dialog.returnValue === "ok" ? field.value.trim() : "";
      if (token) sessionStorage.setItem("token", token);
      resolve(Boolean(token));
    }, { once: true });
  });
}

// ── images that are too large ────────────────────────────────────────────────────────────────────

const MAX_CANVAS = 2 ** 24; // pixels that every browser can draw

// Return the request body for `file`, which `image` shows (natural size 0 if the browser cannot): the file unchanged if
// it is within the server's `limits`, else a smaller JPEG with `shrunk`, its size before and after.
export async function fitLimits(limits, file, image, name) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const { pixels: maxPixels, bytes: maxBytes } = limits;
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Error(text("unreadable")); });
  if (file.size <= maxBytes && width * height <= maxPixels) return { body: file, type: file.type };
  let scale = Math.min(1, Math.sqrt(Math.min(maxPixels, MAX_CANVAS) / (width * height)));
  for (let tries = 0; width && tries < 8; tries++, scale /= 1.5) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(width * scale));
    canvas.height = Math.max(1, Math.floor(height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white"; // as the server composites transparent images
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const jpeg = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    if (!jpeg || jpeg.size > maxBytes) continue;
    const shrunk = { from: `${width}×${height}`, to: `${canvas.width}×${canvas.height}` };
    return { body: jpeg, type: "image/jpeg", shrunk };
  }
  throw new Error(text("too_large", { name, limit: `${(maxBytes / 1e6).toFixed(1)} MB` }));
}
