// Plays a recording: frames with the second at which each appears, of runs [text, state].
(() => {
  const { length, frames } = JSON.parse(document.getElementById("recording").textContent);
  const [text, at, clock, play] = ["text", "at", "clock", "play"].map((id) => document.getElementById(id));
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  let now = still ? frames.length - 1 : 0, playing = !still, begun = performance.now();
  at.max = frames.length - 1;

  function show(number) {
    now = Math.max(0, Math.min(frames.length - 1, number));
    const frame = frames[now];
    text.replaceChildren(...frame.runs.map(([piece, state]) => {
      const span = document.createElement("span");
      span.className = state;
      span.textContent = piece;
      return span;
    }));
    at.value = now;
    clock.textContent = `${frame.calls} calls, ${frame.seconds.toFixed(2)} s`;
  }

  function set(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    if (on && now === frames.length - 1) now = 0;
    begun = performance.now() - 1000 * frames[now].at;
    if (on) requestAnimationFrame(tick);
  }

  function tick(time) {
    if (!playing) return;
    const gone = (time - begun) / 1000;
    if (gone > length) begun = time;
    let number = 0;
    while (number + 1 < frames.length && frames[number + 1].at <= Math.min(gone, length)) number += 1;
    if (number !== now) show(number);
    requestAnimationFrame(tick);
  }

  play.addEventListener("click", () => set(!playing));
  at.addEventListener("input", () => { set(false); show(Number(at.value)); });
  document.addEventListener("keydown", (event) => {
    if (event.target === play && event.key === " ") return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === " ") { event.preventDefault(); set(!playing); }
    else if (step && event.target !== at) { set(false); show(now + step); }
  });
  show(now);
  set(playing);
})();
