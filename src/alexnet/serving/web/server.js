// Asking the server: a few requests at a time, again when it is busy, with its token when it wants one; and making a
// picture small enough for it.
import { say } from "./words.js";

const AT_ONCE = 4, TRIES = 20, LONGEST_WAIT = 30;
let free = AT_ONCE;
const queue = [];

// The answer to a request for `path`, relative to the page. Throws an Error whose message is a sentence for the reader.
// `body` is posted as it is, `tell` gets a sentence while the server is busy, `signal` gives the request up.
export async function ask(path, { body, type, tell = () => {}, signal } = {}) {
  if (free > 0) free--;
  else await new Promise((go) => queue.push(go)); // whoever is done hands on its place
  try {
    return await askNow(path, { body, type, tell, signal });
  } finally {
    if (queue.length) queue.shift()();
    else free++;
  }
}

async function askNow(path, { body, type, tell, signal }) {
  for (let tries = 1; ; tries++) {
    signal?.throwIfAborted();
    const token = sessionStorage.getItem("token"), headers = {};
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body) headers["Content-Type"] = type || "application/octet-stream";
    const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal }).catch((error) => {
      throw error.name === "AbortError" ? error : new Error(say("unreachable"));
    });
    if (response.ok) return response;
    if (response.status === 401 && (await newToken(token))) continue;
    if (response.status === 503 && tries < TRIES) {
      const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 0.2), LONGEST_WAIT);
      tell(say("busy", { seconds }));
      await new Promise((go) => setTimeout(go, 1000 * seconds));
      continue;
    }
    if (response.status === 401) throw new Error(say("token_none"));
    const { error } = await response.json().catch(() => ({}));
    throw new Error(error ? say("server_says", { error }) : say("failed", { status: response.status }));
  }
}

// ── the token ────────────────────────────────────────────────────────────────────────────────────────────────────

let asking = null;

// Whether there is another token than `refused`, after asking for it if need be: once, whoever else is waiting too.
async function newToken(refused) {
  if ((sessionStorage.getItem("token") ?? "") !== (refused ?? "")) return true;
  asking ??= askForToken(Boolean(refused)).finally(() => (asking = null));
  return asking;
}

function askForToken(wrong) {
  const dialog = document.getElementById("token"), field = dialog.querySelector("input");
  dialog.querySelector(".error").hidden = !wrong;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      const token = dialog.returnValue === "ok" ? field.value.trim() : "";
      if (token) sessionStorage.setItem("token", token);
      done(Boolean(token));
    }, { once: true });
  });
}

// ── pictures that are too large ──────────────────────────────────────────────────────────────────────────────────

const CANVAS = 2 ** 24; // pixels that every browser can draw

// What is sent for `file`, which `image` shows (its natural size is 0 where the browser cannot): its bytes as they are,
// if they are within the server's `limits`, or a smaller JPEG with `shrunk`, its size before and after.
export async function within(limits, file, image, name) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const most = limits.pixels, bytes = limits.bytes;
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Error(say("unreadable")); });
  if (file.size <= bytes && width * height <= most) return { body: file, type: file.type };
  let scale = Math.min(1, Math.sqrt(Math.min(most, CANVAS) / (width * height)));
  for (let tries = 0; width && tries < 8; tries++, scale /= 1.5) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(width * scale));
    canvas.height = Math.max(1, Math.floor(height * scale));
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "white"; // what the server lays transparent pictures over
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const small = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    if (!small || small.size > bytes) continue;
    const shrunk = { from: `${width}×${height}`, to: `${canvas.width}×${canvas.height}` };
    return { body: small, type: "image/jpeg", shrunk };
  }
  throw new Error(say("too_large", { name, limit: `${(bytes / 1e6).toFixed(1)} MB` }));
}
