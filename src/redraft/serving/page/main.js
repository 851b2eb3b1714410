// The page: what is asked of all lanes, the lanes, and the address that holds both.

import { models, useKey } from "./api.js";
import { Lane } from "./lane.js";
import * as share from "./share.js";

const MOST = 8; // lanes that stand there without being asked for
const [form, prompt, suffix, tokens, judge, order, key, status, place] = [
  "asked", "prompt", "suffix", "tokens", "judge", "order", "key", "status", "lanes",
].map((id) => document.getElementById(id));
const button = (id) => document.getElementById(id);
const lanes = [];
let round = 0; // which press of Write: a later one ends an earlier one

const page = {
  models: [],
  say: (text) => { status.textContent = text; },
  judge: () => judge.value,
  refused: (error, lane) => {
    if (error.status === 401) askForKey();
    page.say(`${lane.name}: ${error.message}`);
  },
};

function askForKey() {
  document.getElementById("key-field").hidden = false;
}

const asked = () => ({ prompt: prompt.value, suffix: suffix.value, tokens: Number(tokens.value) });

function address() {
  const plain = { prompt: prompt.value, suffix: suffix.value, tokens: tokens.value, judge: judge.value, order: order.value };
  return share.written(plain, lanes.map((lane) => lane.settings));
}

function add(settings = {}) {
  const lane = new Lane(page, settings, (gone) => {
    lanes.splice(lanes.indexOf(gone), 1);
    gone.root.remove();
    button("add").focus();
  });
  lane.player.setPace(Number(button("pace").value));
  lanes.push(lane);
  place.append(lane.root);
  return lane;
}

// The models, asked for once; and again when a key was given.
async function open() {
  try {
    page.models = await models();
  } catch (error) {
    if (error.status === 401) askForKey();
    page.say(error.message);
    return false;
  }
  judge.append(...page.models.map((model) => new Option(model.id, model.id)));
  const { form: given, lanes: listed } = share.read(location.search);
  for (const [field, name] of [[prompt, "prompt"], [suffix, "suffix"], [tokens, "tokens"], [judge, "judge"], [order, "order"]]) {
    if (given[name] !== undefined) field.value = given[name];
  }
  for (const select of [judge, order]) if (select.selectedIndex < 0) select.selectedIndex = 0;
  for (const settings of listed.length ? listed : page.models.slice(0, MOST).map((model) => ({ model: model.id }))) add(settings);
  page.say("");
  return true;
}

async function write() {
  const own = ++round;
  place.ariaBusy = "true";
  if (page.models.length || (await open())) await writeAll(own);
  if (own === round) rest();
}

function rest() {
  place.ariaBusy = "false";
  button("stop").disabled = true;
  button("replay").disabled = !lanes.some((lane) => lane.player.last >= 0);
}

async function writeAll(own) {
  history.replaceState(null, "", address());
  for (const lane of lanes) lane.abort();
  button("stop").disabled = false;
  button("replay").disabled = true;
  if (order.value === "together") await Promise.all(lanes.map((lane) => lane.write(asked())));
  else for (const lane of [...lanes]) if (own === round && lanes.includes(lane)) await lane.write(asked());
}

form.addEventListener("submit", (event) => { event.preventDefault(); write(); });
key.addEventListener("input", () => useKey(key.value));
button("stop").addEventListener("click", () => {
  round += 1;
  for (const lane of lanes) lane.abort();
  rest();
});
button("add").addEventListener("click", async () => {
  if (page.models.length || (await open())) add({ model: page.models[lanes.length % page.models.length].id }).find("model").focus();
});
button("replay").addEventListener("click", () => { for (const lane of lanes) lane.player.play(0); });
button("pace").addEventListener("change", (event) => { for (const lane of lanes) lane.player.setPace(Number(event.target.value)); });
button("link").addEventListener("click", async () => {
  history.replaceState(null, "", address());
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  page.say(copied ? "The link is copied." : "The address bar holds the link.");
});
open();
