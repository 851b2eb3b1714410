// One lane: its settings, the text as it is written, the player and the numbers below it, rewriting a part, saving.

import { score, written } from "./api.js";
import { Player } from "./player.js";
import { Recording } from "./recording.js";
import { gif } from "./gif.js";
import { html, save, svg } from "./save.js";

const PLAIN = ["steps", "temperature", "seed"];
let count = 0;

export class Lane {
  // page: { models, asked(), say(text), judge(), refused(error, lane) }
  constructor(page, settings, removed) {
    this.page = page;
    this.number = ++count;
    this.root = document.getElementById("lane").content.firstElementChild.cloneNode(true);
    this.find = (name) => this.root.querySelector(`.${name}`);
    this.player = new Player(this.root, () => this.name);
    this.label();
    this.fill(settings);
    this.listen(removed);
  }

  label() {
    for (const [at, label] of this.root.querySelectorAll("label").entries()) {
      const field = label.parentElement.querySelector(label.className ? ".at" : "input, select, textarea");
      field.id = `lane-${this.number}-${at}`;
      label.htmlFor = field.id;
    }
    this.find("head").firstElementChild.id = `lane-${this.number}`;
    this.root.setAttribute("aria-labelledby", `lane-${this.number}`);
  }

  fill(settings) {
    const { models } = this.page;
    const known = models.some((model) => model.id === settings.model);
    this.find("model").replaceChildren(...models.map((model) => new Option(model.id === model.family ? model.id : `${model.id} (${model.family})`, model.id)));
    this.find("model").value = known ? settings.model : models[0].id;
    if (settings.model && !known) this.fail(new Error(`This server has no model ${settings.model}: ${models[0].id} is here instead.`));
    for (const name of PLAIN) if (settings[name]) this.find(name).value = settings[name];
    this.offer(settings.sampler);
  }

  // The samplers of the model, its own first.
  offer(chosen) {
    const { samplers, sampler: own } = this.model;
    const others = Object.keys(samplers).filter((name) => name !== own);
    const options = [new Option(`${own} (own)`, ""), ...others.map((name) => new Option(name, name))];
    this.find("sampler").replaceChildren(...options);
    this.find("sampler").value = chosen && chosen !== own && samplers[chosen] !== undefined ? chosen : "";
    this.remark();
  }

  remark() {
    const sampler = this.find("sampler").value || this.model.sampler, stepped = this.model.samplers[sampler];
    this.find("steps").disabled = !stepped;
    this.find("remark").textContent = stepped ? "" : `${sampler} has no number of steps.`;
    this.find("head").firstElementChild.textContent = `${this.number}. ${this.name}`;
    this.find("text").setAttribute("aria-label", `Text of lane ${this.number}, ${this.name}`);
    const left = this.model.left_to_right;
    this.find("infill").textContent = left
      ? `${this.model.family} writes from left to right: it cannot fill in before what follows. Diffusion models can.`
      : "What stands before and after the part is given; the part is written anew by this lane.";
    this.selected();
  }

  get model() {
    return this.page.models.find((model) => model.id === this.find("model").value);
  }

  get name() {
    return this.model.id;
  }

  get settings() {
    const own = Object.fromEntries(["model", "sampler", ...PLAIN].map((name) => [name, this.find(name).value]));
    return { ...own, steps: own.steps || "64", temperature: own.temperature || "1", seed: own.seed || "0" };
  }

  listen(removed) {
    this.find("remove").addEventListener("click", () => { this.abort(); removed(this); });
    this.find("model").addEventListener("change", () => { this.offer(""); });
    this.find("sampler").addEventListener("change", () => this.remark());
    this.find("text").addEventListener("pointerup", () => this.picked());
    for (const name of ["select", "input", "keyup", "pointerup"]) this.find("part").addEventListener(name, () => this.selected());
    this.find("rewrite").addEventListener("click", () => this.rewrite());
    const title = () => `${this.name}: ${this.player.recording.frames.at(-1).calls} calls`;
    this.find("svg").addEventListener("click", () => save(`${this.name}.svg`, "image/svg+xml", svg(this.player.recording, title())));
    this.find("gif").addEventListener("click", () => save(`${this.name}.gif`, "image/gif", gif(this.player.recording, title())));
    this.find("html").addEventListener("click", async () => {
      const player = await (await fetch("page/animation.js")).text();
      save(`${this.name}.html`, "text/html", html(this.player.recording, title(), player));
    });
  }

  // Write what the page asks for, or a part of this lane's own text.
  async write(asked) {
    this.abort();
    this.fail(null);
    const stop = (this.stop = new AbortController());
    const recording = new Recording(this.model.end);
    this.root.ariaBusy = "true";
    this.player.begin(recording);
    for (const name of ["html", "svg", "gif", "rewrite"]) this.find(name).disabled = true;
    this.find("rate").textContent = this.find("bits").textContent = "–";
    this.page.say(`${this.name} writes.`);
    try {
      for await (const chunk of written(this.request(asked), stop.signal)) this.take(recording, chunk);
      this.finish(recording, asked);
      await this.judge(asked.prompt + recording.text + asked.suffix, stop.signal);
    } catch (error) {
      if (this.stop === stop) this.player.end();
      if (error.name !== "AbortError") this.fail(error);
      else if (this.stop === stop) this.page.say(`${this.name} was stopped.`);
    }
    if (this.stop === stop) this.root.ariaBusy = "false";
  }

  request({ prompt, suffix, tokens }) {
    const { model, sampler, steps, temperature, seed } = this.settings;
    const own = { model, sampler, temperature: Number(temperature), seed: Number(seed), steps: Number(steps) };
    return { ...own, prompt, ...(suffix && { suffix }), ...(tokens && { max_tokens: tokens }) };
  }

  take(recording, chunk) {
    if (chunk.usage) recording.tokens = chunk.usage.completion_tokens;
    for (const choice of chunk.choices) {
      recording.text += choice.text;
      recording.reason = choice.finish_reason || recording.reason;
      if (choice.canvas) {
        recording.add(choice.canvas);
        this.player.news();
      }
    }
  }

  finish(recording, { prompt, suffix }) {
    this.player.end();
    const { seconds, tokens, text } = recording, rate = seconds > 0 ? tokens / seconds : 0;
    this.find("rate").textContent = rate >= 100 ? rate.toFixed(0) : rate.toPrecision(3);
    this.page.say(`${this.name} has written ${tokens} tokens in ${seconds.toFixed(2)} seconds.`);
    for (const name of ["html", "svg", "gif"]) this.find(name).disabled = !recording.frames.length;
    this.find("part").value = prompt + text + suffix;
    this.density = tokens / Math.max(1, text.length);
    this.selected();
  }

  async judge(text, signal) {
    const judge = this.page.judge() || this.name;
    if (!text) return;
    this.find("judged").textContent = judge === this.name ? "Bits/byte" : `Bits/byte, ${judge}`;
    try {
      const found = await score(judge, text, signal);
      const value = found.bits_per_byte === null ? "not known" : found.bits_per_byte.toFixed(2);
      this.find("bits").textContent = `${found.exact ? "" : "≤ "}${value}`;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      this.find("bits").textContent = "not scored";
      this.find("remark").textContent = `Not scored: ${error.message}`;
    }
  }

  // A selection in the coloured text is carried to the field below it.
  picked() {
    const chosen = getSelection(), part = this.find("part"), text = this.find("text");
    if (!part.value || !chosen.rangeCount || chosen.isCollapsed || !this.player.atEnd) return;
    const range = chosen.getRangeAt(0), before = range.cloneRange();
    if (!text.contains(range.commonAncestorContainer)) return;
    before.selectNodeContents(text);
    before.setEnd(range.startContainer, range.startOffset);
    const start = before.toString().length;
    if (!part.value.includes(range.toString())) return; // it reaches beyond the end of the text
    this.find("part").closest("details").open = true;
    part.setSelectionRange(start, start + range.toString().length);
    this.selected();
  }

  get part() {
    const { value, selectionStart, selectionEnd } = this.find("part");
    return { prompt: value.slice(0, selectionStart), chosen: value.slice(selectionStart, selectionEnd), suffix: value.slice(selectionEnd) };
  }

  selected() {
    const { chosen } = this.part;
    this.find("rewrite").disabled = !chosen || this.model.left_to_right || this.player.writing;
    if (chosen) this.find("room").value = Math.max(1, Math.round(chosen.length * this.density));
  }

  rewrite() {
    const { prompt, suffix } = this.part;
    const tokens = Number(this.find("room").value);
    this.find("seed").value = Number(this.find("seed").value) + 1; // another text than before
    this.write({ prompt, suffix, tokens }).then(() => this.find("text").focus());
  }

  fail(error) {
    const place = this.find("error");
    place.hidden = !error;
    place.textContent = error ? error.message : "";
    if (error) this.page.refused(error, this);
  }

  abort() {
    this.stop?.abort();
  }
}
