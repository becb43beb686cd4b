// The blocks of a pattern on a canvas: the map with its margins, marks over it, and a window that is
// chosen by dragging or by keys. A view of them has the data, the state and `open(queries, keys)`.

const MAPS = { pooled_max: "largest weight", pooled_mean: "mean mass" };
// Tokens a side of a window: at most, and around a block or a word.
const WIDEST = 512;
const USUAL = 128;
const MARGIN = 56;

class BlockMap {
  at(row, column) {
    return this.maps[this.state.map][row * this.data.blocks + column];
  }

  blocks([start, stop]) {
    const { tile } = this.data;
    return [Math.floor(start / tile), Math.floor((stop - 1) / tile)];
  }

  inside(row, column) {
    const { tile, length } = this.data;
    return [row, column].map((at) => [at * tile, Math.min((at + 1) * tile, length)]);
  }

  // So many tokens around a place.
  around(middle, wanted) {
    const { length } = this.data;
    const side = Math.min(wanted, WIDEST, length);
    const start = Math.min(Math.max(Math.round(middle - side / 2), 0), length - side);
    return [start, start + side];
  }

  // The tokens of some blocks; of more than a window holds, those around their middle.
  within(start, stop) {
    return stop - start > WIDEST ? this.around((start + stop) / 2, WIDEST) : [start, stop];
  }

  block(row, column) {
    const side = Math.max(USUAL, this.data.tile);
    this.open(...this.inside(row, column).map(([start, stop]) => this.around((start + stop) / 2, side)));
  }

  picture(context, box, count) {
    const { left, top, cell } = box;
    const side = cell * count;
    const rgb = weightColour(box.dark);
    const [mask, map] = [0, 1].map(() => element("canvas", { width: count, height: count }));
    const [opaque, shaded] = [mask, map].map((canvas) => canvas.getContext("2d").createImageData(count, count));
    this.maps[this.state.map].forEach((value, at) => {
      if (!(value > 0)) return;
      opaque.data[4 * at + 3] = 255;
      shaded.data.set([...rgb, 255 * this.shade(value)], 4 * at);
    });
    mask.getContext("2d").putImageData(opaque, 0, 0);
    map.getContext("2d").putImageData(shaded, 0, 0);
    context.imageSmoothingEnabled = false;
    context.fillStyle = box.hatch;
    context.fillRect(left, top, side, side);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask, left, top, side, side);
    context.globalCompositeOperation = "source-over";
    context.drawImage(map, left, top, side, side);
    const { received = [], entropy = [] } = this.margins;
    const high = Math.max(...entropy.filter(Number.isFinite), 1e-9);
    const room = MARGIN - 8;
    context.fillStyle = css(rgb);
    received.forEach((value, at) => {
      if (value > 0) context.fillRect(left + at * cell, top + side + 6, cell, room * Math.max(0.02, 1 + Math.log10(Math.min(value, 1)) / 4));
    });
    entropy.forEach((value, at) => {
      if (value > 0) context.fillRect(left + side + 6, top + at * cell, (room * value) / high, cell);
    });
    this.box = box;
    this.paint();
  }

  // What lies over the map: matches, the window, and what is being dragged over.
  paint() {
    if (!this.box) return;
    const { canvas } = this.cells;
    const { left, top, cell, ratio } = this.box;
    Object.assign(this.marks, { width: canvas.width, height: canvas.height });
    Object.assign(this.marks.style, { width: canvas.style.width, height: canvas.style.height });
    const pen = this.marks.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const colour = (name) => getComputedStyle(this.cells.grid).getPropertyValue(name);
    const scale = cell / this.data.tile;
    const side = cell * this.data.blocks;
    pen.fillStyle = colour("--out-ink");
    this.matches.forEach(([start, stop], at) => {
      const [from, size] = [start * scale, Math.max(1.5, (stop - start) * scale)];
      const long = at === this.match;
      pen.globalAlpha = long ? 0.55 : 1;
      pen.fillRect(left + from, long ? top : top - 5, size, long ? side : 5);
      pen.fillRect(long ? left : left - 5, top + from, long ? side : 5, size);
    });
    pen.globalAlpha = 1;
    const frame = (queries, keys, dashes) => {
      const place = [left + keys[0] * scale, top + queries[0] * scale, (keys[1] - keys[0]) * scale, (queries[1] - queries[0]) * scale];
      for (const [style, width] of [["#000", 4], ["#fff", 1.5]]) {
        Object.assign(pen, { strokeStyle: style, lineWidth: width });
        pen.setLineDash(dashes);
        pen.strokeRect(...place);
      }
    };
    if (this.state.queries) frame(this.state.queries, this.state.keys, []);
    if (this.chosen) frame(...this.region(), [6, 4]);
  }

  describe(row, column) {
    const [queries, keys] = this.inside(row, column);
    const value = this.at(row, column);
    const words = ([start]) => this.tokens.slice(start, start + 6).join(this.data.apart ? " " : "").replace(/\s+/g, " ");
    const { received, entropy } = this.margins;
    return [
      value === 0 ? "0: masked, or too small for the model's numbers" : `${amount(value)} ${MAPS[this.state.map]}`,
      `queries ${ends(queries)}: “${words(queries)} …”${entropy ? `, mean entropy ${amount(entropy[row])} nats` : ""}`,
      `keys ${ends(keys)}: “${words(keys)} …”${received ? `, largest received ${amount(received[column])}` : ""}`,
    ];
  }

  // Blocks from one corner to the other, as tokens.
  region() {
    const [one, other] = this.chosen;
    return [0, 1].map((side) => {
      const [low, high] = [Math.min(one[side], other[side]), Math.max(one[side], other[side])];
      return this.within(low * this.data.tile, Math.min((high + 1) * this.data.tile, this.data.length));
    });
  }

  drag() {
    const { canvas } = this.cells;
    canvas.addEventListener("pointerdown", (event) => {
      this.from = event.button === 0 ? this.cells.hit(event) : null;
      this.dragged = false;
      if (this.from) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.from) return;
      const to = this.cells.near(event);
      this.dragged ||= String(to) !== String(this.from);
      this.chosen = this.dragged ? [this.from, to] : null;
      this.paint();
    });
    canvas.addEventListener("pointerup", () => {
      if (this.from && this.dragged) this.take();
      this.from = null;
    });
    canvas.addEventListener("pointercancel", () => {
      this.from = this.chosen = null;
      this.paint();
    });
  }

  take() {
    const region = this.region();
    this.chosen = null;
    this.open(...region);
  }

  // With Shift the arrow keys choose blocks, and Enter takes them; Escape lets go of them.
  key(event) {
    const { cells } = this;
    if (!event.composedPath().includes(cells.grid)) return false;
    const step = MOVES[event.key];
    if (step && event.shiftKey) {
      const from = this.chosen?.[0] ?? cells.at ?? [0, 0];
      cells.step(step);
      this.chosen = [from, cells.at];
      this.paint();
      const [queries, keys] = this.region();
      cells.status.textContent = `selected queries ${ends(queries)}, keys ${ends(keys)}; Enter opens them`;
      return true;
    }
    this.dragged = false;
    if (!this.chosen || !(step || event.key === "Enter" || event.key === "Escape")) return false;
    if (event.key === "Enter") this.take();
    this.chosen = null;
    this.paint();
    return event.key === "Enter" || event.key === "Escape";
  }
}

const ends = ([start, stop]) => `${start}–${stop - 1}`;
