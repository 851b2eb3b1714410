// The form in the page's address and back: prompt, suffix, tokens, judge, order, and of each lane one value under each of its names.

const LANE = ["model", "sampler", "steps", "temperature", "seed"];
const FORM = ["prompt", "suffix", "tokens", "judge", "order"];

export function written(form, lanes) {
  const query = new URLSearchParams();
  for (const name of FORM) if (form[name]) query.set(name, form[name]);
  for (const lane of lanes) for (const name of LANE) query.append(name, lane[name]);
  return `${location.pathname}?${query}`;
}

export function read(search) {
  const query = new URLSearchParams(search);
  const form = Object.fromEntries(FORM.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));
  const lanes = query.getAll("model").map((_, at) => Object.fromEntries(LANE.map((name) => [name, query.getAll(name)[at]])));
  return { form, lanes };
}
