// The frames of one text, and for each token of each frame the frame that changed it last.

const MARK = "░";
const AGES = [[0, "t0"], [3, "t1"], [15, "t2"], [Infinity, "t3"]];

export class Recording {
  // end: the id that ends a document. given: how many tokens of prompt and suffix each canvas begins and ends with.
  constructor(end) {
    Object.assign(this, { end, frames: [], prompt: 0, suffix: 0, text: "", reason: null, tokens: 0 });
  }

  add(canvas) {
    [this.prompt, this.suffix] = [canvas.prompt_tokens, canvas.suffix_tokens];
    const before = this.frames.at(-1), now = this.frames.length;
    const changed = canvas.tokens.map((id, place) => (before && before.tokens[place] === id ? before.changed[place] : now));
    this.frames.push({ ...canvas, changed });
  }

  // Pieces [text, class] of a frame, neighbours of one class joined.
  runs(number) {
    const { tokens, texts, changed } = this.frames[number], pieces = [];
    const inner = tokens.slice(this.prompt, tokens.length - this.suffix).indexOf(this.end);
    const stop = inner < 0 ? Infinity : this.prompt + inner;
    tokens.forEach((id, place) => {
      const kind = this.kind(id, place, tokens.length, stop, number - changed[place]);
      const piece = id === null ? MARK : texts[place];
      if (pieces.length && pieces.at(-1)[1] === kind) pieces.at(-1)[0] += piece;
      else pieces.push([piece, kind]);
    });
    return pieces.filter(([piece]) => piece);
  }

  kind(id, place, length, stop, age) {
    if (place < this.prompt || place >= length - this.suffix) return "given";
    if (id === null) return "unwritten";
    return place > stop ? "beyond" : AGES.find(([most]) => age <= most)[1];
  }

  get seconds() {
    return this.frames.length ? this.frames.at(-1).seconds : 0;
  }

  // The frame that was there after so many seconds.
  after(seconds) {
    let low = 0, high = this.frames.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.frames[middle].seconds <= seconds) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
