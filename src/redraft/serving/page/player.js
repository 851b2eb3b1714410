// Shows a recording in a lane: live while it is written, then by play, pause, single steps and a slider, at the measured pace.

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Player {
  constructor(root, name) {
    this.find = (part) => root.querySelector(`.${part}`);
    Object.assign(this, { name, recording: null, at: 0, playing: false, writing: false, pace: 1, drawn: 0 });
    this.find("play").addEventListener("click", () => this.toggle());
    this.find("back").addEventListener("click", () => this.step(-1));
    this.find("on").addEventListener("click", () => this.step(1));
    this.find("at").addEventListener("input", (event) => { this.pause(); this.show(Number(event.target.value)); });
    this.find("text").addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.shiftKey || event.ctrlKey || event.altKey || event.metaKey || (event.key !== " " && !step)) return;
    event.preventDefault();
    if (step) this.step(step);
    else this.toggle();
  }

  begin(recording) {
    Object.assign(this, { recording, at: 0, playing: true, writing: true });
    this.find("text").replaceChildren();
    for (const part of ["clock", "calls"]) this.find(part).textContent = "–";
    this.buttons();
  }

  // A frame was added. Where motion is not wanted, only the last one is shown, when all is written.
  news() {
    this.find("at").max = this.recording.frames.length - 1;
    if (!this.playing || still.matches || this.drawn) return this.count();
    this.drawn = requestAnimationFrame(() => {
      this.drawn = 0;
      if (this.playing && this.writing) this.show(this.recording.frames.length - 1);
    });
  }

  end() {
    cancelAnimationFrame(this.drawn);
    const live = this.playing && this.writing;
    Object.assign(this, { drawn: 0, writing: false, playing: false });
    if (live) this.show(this.recording.frames.length - 1);
    this.buttons();
  }

  get last() {
    return this.recording ? this.recording.frames.length - 1 : -1;
  }

  get atEnd() {
    return !this.writing && this.at === this.last;
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  pause() {
    this.playing = false;
    this.buttons();
  }

  play(from = this.at >= this.last ? 0 : this.at) {
    if (this.last < 0) return;
    this.playing = true;
    this.buttons();
    if (this.writing) return this.show(this.last); // on with what is being written
    const start = performance.now() - (1000 * (from ? this.recording.frames[from].seconds : 0)) / this.pace;
    this.run = start;
    this.show(from);
    requestAnimationFrame((now) => this.tick(now, start));
  }

  setPace(pace) {
    this.pace = pace;
    if (this.playing && !this.writing) this.play(this.at);
  }

  tick(now, start) {
    if (!this.playing || this.writing || this.run !== start) return;
    const number = this.recording.after(((now - start) * this.pace) / 1000);
    if (number !== this.at) this.show(number);
    if (number >= this.last) return this.pause();
    requestAnimationFrame((next) => this.tick(next, start));
  }

  step(by) {
    this.pause();
    this.show(this.at + by);
  }

  show(number) {
    if (this.last < 0) return;
    this.at = Math.max(0, Math.min(this.last, number));
    const { seconds, calls } = this.recording.frames[this.at];
    this.find("text").replaceChildren(...this.recording.runs(this.at).map(([piece, kind]) => {
      const span = document.createElement("span");
      span.className = kind;
      span.textContent = piece;
      if (kind === "unwritten") span.ariaHidden = "true";
      return span;
    }));
    this.find("clock").textContent = `${seconds.toFixed(2)} s`;
    this.find("calls").textContent = calls;
    this.find("at").value = this.at;
    this.count();
  }

  count() {
    this.find("frame").textContent = `${this.at + 1} of ${this.last + 1}`;
    this.find("at").setAttribute("aria-valuetext", `frame ${this.at + 1} of ${this.last + 1}`);
    this.buttons();
  }

  buttons() {
    const none = this.last < 0;
    for (const part of ["play", "back", "on", "at"]) this.find(part).disabled = none;
    this.find("play").textContent = this.playing ? "Pause" : "Play";
  }
}
