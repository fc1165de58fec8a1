// Asks the server that this page came from, as any client would, and shows its answers as they come.
"use strict";

const byId = (id) => document.getElementById(id);
const MOST_DEPTHS = 5;
let models = [];
let panels = [];
let running = null;

// --- the server -----------------------------------------------------------------------------------

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

/** The documents of a stream of server-sent events, one by one. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ") || block === "data: [DONE]") continue;
      yield JSON.parse(block.slice(6));
    }
  }
}

async function learn() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) {
    byId("key-line").hidden = false;
    byId("key").focus();
    say("This server wants a key.", "");
    byId("lede").textContent = "What it serves is told to those who have its key.";
    return;
  }
  if (response.status === 503) {
    byId("phase").textContent = " · loading its model";
    setTimeout(start, 1000);
    return;
  }
  if (!response.ok) throw new Error(await problemOf(response));
  byId("phase").textContent = "";
  byId("key-line").hidden = true;
  say("", "");
  // Dense first: on the left stands what the other is measured by.
  models = (await response.json()).data.sort((a, b) => a.skimp.side.localeCompare(b.skimp.side));
  describe();
}

function start() {
  learn().catch((error) => say(error.message, "failed"));
}

// --- what is served -------------------------------------------------------------------------------

function describe() {
  const own = models.find((model) => model.skimp.side === "planned") ?? models[0];
  const plan = own.skimp.plan;
  byId("name").textContent = own.id;
  document.title = `${own.id} · skimp`;
  const words = { planned: "with its plan", dense: "as it is, dense" }[own.skimp.side];
  byId("lede").textContent =
    models.length > 1
      ? `Two answers to one prompt: from the dense model, and ${words}.`
      : `Served ${words}${plan ? `: ${plan}` : ""}.`;
  byId("together-label").hidden = models.length < 2;
  const chat = byId("mode");
  chat.disabled = !own.skimp.chat;
  if (!own.skimp.chat) chat.value = "text";
  byId("sides").classList.toggle("one", models.length < 2);
  panels = models.map((model) => new Panel(model));
  byId("sides").replaceChildren(...panels.map((panel) => panel.root));
  byId("go").disabled = false;
  showPrograms(own);
}

function showPrograms(own) {
  const root = new URL("v1", document.baseURI).href;
  const chat = own.skimp.chat;
  const body = chat
    ? { model: own.id, messages: [{ role: "user", content: "Why is the sky blue?" }] }
    : { model: own.id, prompt: "The sky is blue because", max_tokens: 64 };
  const path = chat ? "chat/completions" : "completions";
  byId("curl").textContent =
    `curl ${root}/${path} -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(body)}'`;
  const call = chat
    ? `client.chat.completions.create(model="${own.id}", messages=[{"role": "user", "content": "Why is the sky blue?"}])`
    : `client.completions.create(model="${own.id}", prompt="The sky is blue because")`;
  const field = chat ? "message.content" : "text";
  byId("python").textContent =
    `from openai import OpenAI\n\nclient = OpenAI(base_url="${root}", api_key="none")\n` +
    `answer = ${call}\nprint(answer.choices[0].${field})`;
}

// --- one side -------------------------------------------------------------------------------------

class Panel {
  constructor(model) {
    this.model = model;
    this.root = byId("side").content.cloneNode(true).querySelector("section");
    const { side, layers, plan } = model.skimp;
    const title = this.root.querySelector("h2");
    title.textContent = side === "dense" ? "Dense" : "Planned";
    title.id = `title-${side}`;
    this.root.dataset.side = side;
    this.root.setAttribute("aria-labelledby", title.id);
    this.text = this.root.querySelector(".text");
    this.text.setAttribute("aria-label", `Answer of the ${side} model`);
    this.root.querySelector(".what").textContent =
      side === "dense" ? `All ${layers} layers.` : `${capital(plan || "with its plan")}.`;
    this.chart = this.root.querySelector(".depths");
    this.reset();
  }

  reset() {
    this.tokens = [];
    this.depths = [];
    this.speed = null;
    this.finished = false;
    this.since = performance.now();
    this.firstAt = this.lastAt = null;
    this.root.classList.remove("writing");
    const empty = document.createElement("span");
    empty.className = "empty";
    empty.textContent = "Its answer will stand here.";
    this.text.replaceChildren(empty);
    this.chart.replaceChildren();
    this.chart.setAttribute("hidden", "");
    this.root.querySelector("[data-depth]").hidden = true;
    this.root.querySelector(".end").textContent = "";
    for (const name of ["speed", "first", "count", "depth"]) this.figure(name, "–");
  }

  figure(name, value, unit = "") {
    const cell = this.root.querySelector(`[data-figure="${name}"]`);
    cell.textContent = value;
    if (unit) {
      const small = document.createElement("small");
      small.textContent = ` ${unit}`;
      cell.append(small);
    }
  }

  async write(ask, signal) {
    this.since = performance.now();
    this.root.classList.add("writing");
    this.text.replaceChildren();
    try {
      const body = { ...ask.body, model: this.model.id, stream: true };
      if (this.model.skimp.allow.includes("tokens")) body.skimp = { tokens: true };
      const options = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
      const response = await fetch(`v1/${ask.path}`, options);
      if (!response.ok) throw new Error(await problemOf(response));
      for await (const chunk of events(response)) this.take(chunk);
      this.finished = true;
    } finally {
      this.root.classList.remove("writing");
    }
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices[0];
    if (!choice) return;
    const text = choice.delta ? choice.delta.content : choice.text;
    if (choice.finish_reason) this.end(choice.finish_reason, chunk.skimp);
    else if (text || chunk.skimp) this.add(text ?? "", chunk.skimp ?? {});
  }

  add(text, { id = null, depth = null }) {
    const now = performance.now();
    this.firstAt ??= now;
    this.lastAt = now;
    const span = document.createElement("span");
    span.className = "token";
    span.textContent = text;
    this.text.append(span);
    this.tokens.push({ key: id ?? text, span });
    if (depth !== null && depth !== undefined) this.deepen(span, depth);
    this.figure("count", String(this.tokens.length));
    if (this.tokens.length === 1) this.figure("first", ...seconds((now - this.since) / 1000));
    else this.figure("speed", rate((this.tokens.length - 1) / ((now - this.firstAt) / 1000)));
    compare();
  }

  /** Colour a token by how early it was decided, as reports do, and draw its depth. */
  deepen(span, depth) {
    const layers = this.model.skimp.layers;
    const shade = shadeOf(depth, layers);
    this.depths.push(depth);
    if (shade) span.classList.add(`depth-${shade}`);
    span.title = `decided after ${depth} of ${layers} layers`;
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const attributes = { x: this.depths.length - 0.9, y: layers - depth, width: 0.8, height: depth };
    for (const [name, value] of Object.entries(attributes)) bar.setAttribute(name, value);
    if (shade) bar.classList.add(`shade-${shade}`);
    this.chart.append(bar);
    this.chart.setAttribute("viewBox", `0 0 ${Math.max(this.depths.length, 48)} ${layers}`);
    const mean = this.depths.reduce((sum, one) => sum + one, 0) / this.depths.length;
    this.chart.setAttribute("aria-label", `Depth of each token, ${mean.toFixed(1)} of ${layers} layers in the mean`);
    this.chart.removeAttribute("hidden");
    this.root.querySelector("[data-depth]").hidden = false;
    this.figure("depth", mean.toFixed(1), `of ${layers}`);
    byId("legend").hidden = byId("legend-depth").hidden = false;
    byId("depth-low").textContent = `${Math.floor(layers / 2)} or fewer`;
    byId("depth-high").textContent = `${layers - 1} layers; without colour: all ${layers}`;
  }

  end(reason, figures) {
    // The server's own clock knows nothing of the network and of this page.
    if (figures?.tokens_per_s) {
      this.speed = figures.tokens_per_s;
      this.figure("speed", rate(this.speed));
    }
    if (figures?.ttft_s) this.figure("first", ...seconds(figures.ttft_s));
    const words = { length: "Cut at the tokens asked for.", stop: "It came to its end." };
    this.root.querySelector(".end").textContent = words[reason] ?? "";
  }
}

// --- both sides -----------------------------------------------------------------------------------

/** How many tokens both sides share from the start, as far as both have come. */
function shared() {
  const [left, right] = panels;
  const most = Math.min(left.tokens.length, right.tokens.length);
  let same = 0;
  while (same < most && left.tokens[same].key === right.tokens[same].key) same += 1;
  return same;
}

function compare() {
  if (panels.length < 2) return;
  const same = shared();
  for (const [index, panel] of panels.entries()) {
    const other = panels[1 - index];
    const from = panel.compared ?? 0;
    for (let at = from; at < Math.min(same, panel.tokens.length); at += 1) {
      panel.tokens[at].span.classList.add("same");
    }
    panel.compared = same;
    const both = same < panel.tokens.length && same < other.tokens.length;
    const over = other.finished && same === other.tokens.length && same < panel.tokens.length;
    if (both || over) panel.tokens[same].span.classList.add("first");
    if (both || over) byId("legend-first").hidden = false;
  }
  if (same > 0) byId("legend").hidden = byId("legend-same").hidden = false;
}

function verdict(together) {
  if (panels.length < 2) return;
  const [dense, planned] = panels;
  const same = shared();
  const all = Math.max(dense.tokens.length, planned.tokens.length);
  const words = [];
  let kind = "";
  if (together) {
    words.push("Both were written at once and shared the machine, so their speeds say nothing.");
  } else if (dense.speed && planned.speed) {
    const ratio = planned.speed / dense.speed;
    kind = ratio > 1 ? "faster" : "";
    const how = ratio > 1 ? "it writes" : "it is not faster:";
    words.push(`Planned, ${how} ${ratio.toFixed(2)} times as many tokens a second, this once.`);
  }
  if (same === all) words.push(`All ${all} tokens are the same.`);
  else if (same > 1) words.push(`The first ${same} of ${all} tokens are the same.`);
  else words.push(`They differ from the ${same ? "second" : "first"} token on.`);
  say(words.join(" "), kind);
}

function say(text, kind) {
  const line = byId("verdict");
  line.textContent = text;
  line.className = `verdict ${kind}`;
  line.hidden = !text;
}

function asked() {
  const prompt = byId("prompt").value;
  const common = {
    max_tokens: Number(byId("tokens").value),
    temperature: Number(byId("temperature").value),
    seed: Math.floor(Math.random() * 2 ** 31), // one for both sides
  };
  if (byId("mode").value === "chat") {
    const body = { ...common, messages: [{ role: "user", content: prompt }] };
    return { path: "chat/completions", body };
  }
  return { path: "completions", body: { ...common, prompt } };
}

async function write() {
  const ask = asked();
  const together = panels.length > 1 && byId("together").checked;
  const control = new AbortController();
  running = control;
  for (const id of ["legend", "legend-same", "legend-first", "legend-depth"]) byId(id).hidden = true;
  for (const panel of panels) {
    panel.reset();
    panel.compared = 0;
  }
  say("", "");
  byId("go").disabled = true;
  byId("stop").disabled = false;
  try {
    if (together) await Promise.all(panels.map((panel) => panel.write(ask, control.signal)));
    else for (const panel of panels) await panel.write(ask, control.signal);
    compare();
    verdict(together);
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (!stopped) control.abort();
    say(stopped ? "Stopped." : error.message, stopped ? "" : "failed");
  } finally {
    running = null;
    byId("go").disabled = false;
    byId("stop").disabled = true;
  }
}

/** 0 for all layers; the earlier, the stronger, up to `MOST_DEPTHS` at half of them. */
function shadeOf(depth, layers) {
  if (depth >= layers) return 0;
  const left = (2 * (layers - depth)) / layers;
  return Math.min(MOST_DEPTHS, Math.ceil(MOST_DEPTHS * left));
}

// --- small things ---------------------------------------------------------------------------------

function rate(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

function seconds(value) {
  return value < 1 ? [(value * 1000).toFixed(0), "ms"] : [value.toFixed(2), "s"];
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && panels.length) write();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("use-key").addEventListener("click", start);
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  start();
});
start();
