// A recording as a file that plays by itself: SVG, or HTML with a slider; as `redraft sample --animate` makes them.

export const WIDTH = 76, GLYPH = 8.4, LINE = 20, EDGE = 16;
const MOST = 160, HELD = 2;
export const COLOURS = { given: "#57606a", unwritten: "#8c959f", beyond: "#8c959f", t0: "#b3470a", t1: "#a84300", t2: "#7a5200", t3: "#1f2328" };
const STYLE = Object.entries(COLOURS).map(([name, colour]) => [`.${name}`, colour]);

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
// Control and format characters are not allowed in XML, or would turn what stands around them.
const visible = (text) => text.replace(/[^\n\t\P{C}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);

// At most so many frames, the first and the last among them, and the second at which each appears: between 4 and 12 in all.
export function played(recording, most = MOST) {
  const last = recording.frames.length - 1, count = Math.min(most, last + 1);
  const kept = [...new Set(Array.from({ length: count }, (_, i) => Math.round((i * last) / Math.max(1, count - 1))))];
  const [begin, end] = [recording.frames[0].seconds, recording.seconds];
  const length = Math.min(Math.max(end - begin, 4), 12);
  const frames = kept.map((number) => {
    const { seconds, calls } = recording.frames[number];
    const runs = recording.runs(number).map(([text, kind]) => [visible(text), kind]);
    return { at: end > begin ? ((seconds - begin) / (end - begin)) * length : 0, calls, seconds, runs };
  });
  return { length: length + HELD, frames };
}

export function lines(runs) {
  const out = [[]];
  let used = 0;
  for (const [text, kind] of runs) {
    text.replaceAll("\t", "    ").split("\n").forEach((part, number) => {
      if (number) { out.push([]); used = 0; }
      for (let letters = [...part]; letters.length; ) {
        if (used === WIDTH) { out.push([]); used = 0; }
        const piece = letters.splice(0, WIDTH - used);
        out.at(-1).push([piece.join(""), kind]);
        used += piece.length;
      }
    });
  }
  return out;
}

export const said = (frame) => `${frame.calls} calls, ${frame.seconds.toFixed(2)} s`;

function body(frame) {
  const rows = lines(frame.runs).map((row, number) => {
    const spans = row.map(([text, kind]) => `<tspan class="${kind}">${escaped(text)}</tspan>`).join("");
    return `<text x="${EDGE}" y="${EDGE + (number + 2) * LINE}" xml:space="preserve">${spans}</text>`;
  });
  return `${rows.join("")}<text x="${EDGE}" y="${EDGE + (rows.length + 2.5) * LINE}" class="given">${said(frame)}</text>`;
}

export function svg(recording, title) {
  const { length, frames } = played(recording), rules = [], groups = [];
  frames.forEach((frame, number) => {
    const last = number === frames.length - 1, from = (100 * frame.at) / length;
    const hidden = last ? "" : `${((100 * frames[number + 1].at) / length).toFixed(3)}%{visibility:hidden}`;
    rules.push(`@keyframes k${number}{0%{visibility:hidden}${from.toFixed(3)}%{visibility:visible}${hidden}}`);
    rules.push(`#f${number}{animation:k${number} ${length.toFixed(2)}s step-end infinite}`);
    groups.push(`<g id="f${number}" class="f"${last ? "" : ' visibility="hidden"'}>${body(frame)}</g>`);
  });
  rules.push("@media (prefers-reduced-motion:reduce){.f{animation:none!important}}");
  const tall = Math.max(...frames.map((frame) => lines(frame.runs).length));
  const [wide, high] = [Math.round(2 * EDGE + WIDTH * GLYPH), 2 * EDGE + (tall + 3) * LINE];
  const style = STYLE.map(([name, colour]) => `${name}{fill:${colour}}`).join("");
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${wide} ${high}" width="${wide}" height="${high}" role="img" aria-label="${escaped(title)}"><title>${escaped(title)}</title>` +
    `<style>text{font:14px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;white-space:pre}${style}.t0{font-weight:bold}${rules.join("")}</style>` +
    `<rect width="100%" height="100%" fill="#ffffff"/><text x="${EDGE}" y="${EDGE + LINE / 2}" class="given">${escaped(title)}</text>${groups.join("")}</svg>`;
}

// `player`: the script that plays a recording on a page of its own.
export function html(recording, title, player) {
  const data = JSON.stringify(played(recording)).replaceAll("<", "\\u003c");
  const style = STYLE.map(([name, colour]) => `${name}{color:${colour}}`).join("");
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">` +
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"><title>${escaped(title)}</title>` +
    `<style>body{margin:1.5rem auto;padding:0 1rem;max-width:50rem;background:#fff;color:#1f2328;font:16px/1.5 system-ui,sans-serif}#text{white-space:pre-wrap;overflow-wrap:anywhere;font:15px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,monospace;min-height:12em}` +
    `#controls{display:flex;gap:.75em;align-items:center;flex-wrap:wrap}#controls input{flex:1 1 12em}${style}.t0{font-weight:bold}</style></head><body><h1>${escaped(title)}</h1>` +
    `<p id="controls"><button id="play" type="button">Pause</button><label for="at">Frame</label><input id="at" type="range" min="0" max="0" value="0" step="1"><output id="clock" for="at"></output></p>` +
    `<div id="text"></div><p>Bold: changed in this frame; orange and brown: a few frames ago; grey: given, or not written yet. Space plays and pauses, the arrow keys step.</p>` +
    `<script type="application/json" id="recording">${data}</script><script>${player}</script></body></html>`;
}

export function save(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
