// A pattern too long for its tokens: the whole of it in blocks, and a window that is chosen.

const MAPS = { pooled_max: "largest weight", pooled_mean: "mean mass" };
// Tokens a side of a window: at most, and around a block or a word.
const WIDEST = 512;
const USUAL = 128;
const MARGIN = 56;
const HEAVIEST = 5;
const WHOLE = { map: "pooled_max", find: "", queries: null, keys: null };

class LongView {
  constructor(root, on) {
    this.on = on;
    this.turn = 0;
    this.state = { ...WHOLE };
    this.title = element("div", { class: "title" }, root);
    this.crumbs = element("nav", { class: "crumbs", "aria-label": "Part of the text in view" }, root);
    this.bar = element("div", { class: "toolbar" }, root);
    this.map = this.select("Blocks ", MAPS);
    this.map.addEventListener("change", () => this.set({ map: this.map.value }));
    this.finder();
    this.fields = ["queries", "keys"].map((side) => this.range(side));
    // Asked before the grid, whose keys these are with Shift.
    this.deafen = listen(root, (event) => this.key(event));
    this.cells = new CellGrid(root);
    this.marks = element("canvas", { class: "marks", "aria-hidden": "true" }, this.cells.grid);
    this.legend = element("div", { class: "legend" }, root);
    this.note = element("p", { class: "note" }, root);
    this.below = element("div", {}, root);
    this.drag();
  }

  select(label, options) {
    const made = element("select", {}, element("label", {}, this.bar, label));
    for (const [value, words] of Object.entries(options)) element("option", { value }, made, words);
    return made;
  }

  button(words, name, act) {
    const made = element("button", { type: "button", "aria-label": name, title: name }, this.bar, words);
    made.addEventListener("click", act);
    return made;
  }

  finder() {
    this.find = element("input", { type: "search", size: 14 }, element("label", {}, this.bar, "Find "));
    this.find.addEventListener("input", () => (this.search(this.find.value), this.paint()));
    // The page has keys of its own, which are not meant here.
    this.find.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.go(event.shiftKey ? -1 : 1);
    });
    this.button("‹", "Previous match", () => this.go(-1));
    this.button("›", "Next match", () => this.go(1));
    this.found = element("span", { role: "status", class: "found" }, this.bar);
    this.side = this.select("as ", { keys: "key (source)", queries: "query (destination)" });
    this.places = this.select("Jump to ", {});
    this.button("Go", "Go to the chosen place", () => this.jump(this.targets[Number(this.places.value)]));
  }

  range(side) {
    const label = element("span", {}, this.bar, `${side} `);
    return ["first", "last"].map((end) => {
      const made = element("input", { type: "number", min: 0, "aria-label": `${end} of the ${side}` }, label);
      made.addEventListener("keydown", (event) => event.stopPropagation());
      made.addEventListener("change", () => this.typed());
      return made;
    });
  }

  async show(data) {
    const turn = ++this.turn;
    const read = (arrays) =>
      Promise.all(Object.entries(arrays).map(async ([name, text]) => [name, Array.from(await unpack(text, Uint16Array), weight)]));
    const [maps, margins, text] = await Promise.all([read(data.maps), read(data.margins), unpack(data.tokens, Uint8Array)]);
    if (turn !== this.turn) return;
    const given = JSON.stringify(data.state);
    if (given !== this.given) this.state = { ...WHOLE, ...data.state };
    Object.assign(this, { data, given, maps: Object.fromEntries(maps), margins: Object.fromEntries(margins) });
    if (!(this.state.map in this.maps)) this.state.map = Object.keys(this.maps)[0];
    const other = data.tokens !== this.packed;
    if (other) this.read(JSON.parse(new TextDecoder().decode(text)));
    this.packed = data.tokens;
    this.map.replaceChildren();
    for (const name of Object.keys(this.maps)) element("option", { value: name }, this.map, MAPS[name]);
    if (this.find.getRootNode().activeElement !== this.find) this.find.value = this.state.find;
    if (other || this.find.value !== this.sought) this.search(this.find.value);
    // What is drawn already stays, with what is pointed at.
    if (this.signature() === this.drawn) return;
    this.title.textContent = data.title;
    this.draw();
  }

  signature() {
    const { data, state } = this;
    return JSON.stringify([data.maps, data.title, data.tokens, data.window, state, ink(this.cells.grid)]);
  }

  // The text as one string without capitals, and where each token begins in it.
  read(tokens) {
    this.tokens = tokens;
    this.starts = [];
    this.text = "";
    for (const token of tokens) {
      this.starts.push(this.text.length);
      // The rest of a character of several tokens has no text of its own.
      this.text += token === "⋯" ? "" : token.toLowerCase().replace(/\s/g, " ") + (this.data.apart ? " " : "");
    }
  }

  tokenAt(place) {
    let [low, high] = [0, this.starts.length];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= place) low = middle;
      else high = middle;
    }
    return low;
  }

  search(words) {
    const wanted = words.toLowerCase().replace(/\s/g, " ").trim();
    this.sought = words;
    this.matches = [];
    this.match = -1;
    for (let at = wanted ? this.text.indexOf(wanted) : -1; at >= 0; at = this.text.indexOf(wanted, at + wanted.length)) {
      this.matches.push([this.tokenAt(at), this.tokenAt(at + wanted.length - 1) + 1]);
    }
    const count = this.matches.length;
    this.found.textContent = wanted ? `${count} match${count === 1 ? "" : "es"}` : "";
  }

  go(step) {
    const count = this.matches.length;
    if (!count) return;
    this.match = this.match < 0 && step < 0 ? count - 1 : (this.match + step + count) % count;
    const [start, stop] = this.matches[this.match];
    const around = this.tokens.slice(Math.max(start - 3, 0), stop + 3).join(this.data.apart ? " " : "");
    this.found.textContent = `${this.match + 1} of ${count}: token ${start}, “${around.replace(/\s+/g, " ")}”`;
    this.jump({ span: [start, stop] }, { find: this.find.value });
  }

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

  open(queries, keys, more = {}) {
    this.set({ queries, keys, ...more });
  }

  block(row, column) {
    const side = Math.max(USUAL, this.data.tile);
    this.open(...this.inside(row, column).map(([start, stop]) => this.around((start + stop) / 2, side)));
  }

  // To a block; or to a part of the text as key, with the queries that attend to it most (as query,
  // with the keys that it attends to most): its own block and the first keys are left out.
  jump(target, more = {}) {
    if (!target) return;
    if (target.block) {
      this.block(...target.block);
      return;
    }
    const { blocks, tile } = this.data;
    const [start, stop] = target.span;
    const [first, last] = this.blocks(target.span);
    const asKey = this.side.value === "keys";
    let [best, most] = [null, 0];
    for (let other = asKey ? 0 : 1; other < blocks; other++) {
      if (other >= first && other <= last) continue;
      for (let own = first; own <= last; own++) {
        const value = asKey ? this.at(other, own) : this.at(own, other);
        if (value > most) [best, most] = [other, value];
      }
    }
    const side = Math.max(USUAL, tile);
    const own = this.around((start + stop) / 2, Math.max(side, stop - start));
    const beside = best === null ? own : this.around((best + 0.5) * tile, side);
    this.open(...(asKey ? [beside, own] : [own, beside]), more);
  }

  // Parts of the task's prompt, and the heaviest blocks off the diagonal and the first keys.
  list() {
    const { blocks, roles } = this.data;
    const heavy = [];
    for (let row = 0; row < blocks; row++) {
      for (let column = 1; column < blocks; column++) {
        const value = this.at(row, column);
        if (Math.abs(row - column) > 1 && value > (heavy[HEAVIEST - 1]?.value ?? 0)) {
          heavy.push({ block: [row, column], value });
          heavy.sort((one, other) => other.value - one.value).splice(HEAVIEST);
        }
      }
    }
    const spans = Object.entries(roles).flatMap(([role, all]) => all.map((span) => ({ span, role })));
    this.targets = [...spans, ...heavy];
    const chosen = this.places.value;
    this.places.replaceChildren();
    this.targets.forEach(({ span, role, block, value }, at) => {
      const name = span ? `${role}: ${ends(span)}` : `heaviest block off the diagonal, ${at - spans.length + 1}: ${amount(value)}`;
      element("option", { value: at }, this.places, name);
    });
    if (Number(chosen) < this.targets.length) this.places.value = chosen || "0";
  }

  typed() {
    const { length } = this.data;
    const sides = this.fields.map((inputs) => inputs.map((input) => (input.value === "" ? NaN : Math.round(Number(input.value)))));
    const read = ([first, last]) => {
      const start = Math.min(Math.max(Number.isFinite(first) ? first : last - USUAL + 1, 0), length - 1);
      const stop = (Number.isFinite(last) ? last : start + USUAL - 1) + 1;
      return [start, Math.min(Math.max(stop, start + 1), start + WIDEST, length)];
    };
    if (sides.some((side) => side.every(Number.isNaN))) return;
    this.open(...sides.map(read));
  }

  set(change) {
    Object.assign(this.state, change);
    this.draw();
    this.on.state({ ...this.state });
  }

  draw() {
    const { data, state } = this;
    const { queries, keys } = state;
    this.map.value = state.map;
    this.list();
    this.crumbs.replaceChildren();
    const whole = `Whole text (${data.length} tokens)`;
    if (queries) {
      const back = element("button", { type: "button" }, this.crumbs, whole);
      back.addEventListener("click", () => this.open(null, null));
      element("span", { "aria-current": "location" }, this.crumbs, `› queries ${ends(queries)}, keys ${ends(keys)}`);
    } else {
      element("span", { "aria-current": "location" }, this.crumbs, whole);
    }
    [queries, keys].forEach((side, at) =>
      this.fields[at].forEach((input, end) => {
        input.max = data.length - 1;
        input.value = side ? side[end] - end : "";
      }),
    );
    this.exact();
    const count = data.blocks;
    const starts = Array.from({ length: count }, (_, at) => String(at * data.tile));
    const most = this.maps[state.map].reduce((one, other) => (other > one ? other : one), 1e-4);
    this.shade = (value) => (value > 0 ? Math.max(0.02, Math.min(1, 1 + Math.log10(value / most) / 4)) : 0);
    const at = this.cells.grid.matches(":focus") ? this.cells.at : null;
    this.cells.show({
      label:
        `${data.title}: the whole text of ${data.length} tokens in blocks of ${data.tile} × ${data.tile}, queries (rows), keys (columns); ` +
        "arrow keys move, Shift with them selects, Enter opens the window",
      rows: starts,
      columns: starts,
      fluid: true,
      smallest: 1,
      largest: Math.max(1, 560 / count),
      margin: MARGIN,
      picked: null,
      paint: (context, box) => this.picture(context, box, count),
      describe: (row, column) => this.describe(row, column),
      onPick: (row, column) => this.dragged || this.block(row, column),
    });
    this.cells.move(at);
    this.drawn = this.signature();
    const dark = ink(this.cells.grid).dark;
    const rgb = weightColour(dark);
    legend(this.legend, [css(rgb, 0), css(rgb)], [amount(most / 1e4), `${amount(most)} (log)`], ["masked (exactly 0)"]);
    const what = `${data.tile} × ${data.tile} tokens: ${state.map === "pooled_max" ? "the largest weight in it" : "the mass that its queries send to its keys, averaged over the queries"}`;
    const sides = { received: "below: the most that a key of the block receives (log)", entropy: "right: mean entropy of its queries (from 0)" };
    const drawn = Object.keys(this.margins).map((side) => sides[side]);
    element("span", {}, this.legend, [`a block is ${what}`, ...drawn, "drag, or Shift and arrow keys, to choose a window of at most 512 × 512"].join("; "));
  }

  // In a page of its own: the window that it holds, or how to make another.
  exact() {
    const { data, state } = this;
    const { window: held } = data;
    const holds = held && state.queries && held.first[0] === state.queries[0] && held.first[1] === state.keys[0] &&
      held.queries.length === state.queries[1] - state.queries[0] && (held.keys ?? held.queries).length === state.keys[1] - state.keys[0];
    this.note.textContent =
      state.queries && !holds && !data.live
        ? `This page does not hold that window: pattern(..., queries=slice(${state.queries.join(", ")}), keys=slice(${state.keys.join(", ")})) makes it.`
        : "";
    this.below.hidden = !holds;
    if (!holds) return;
    this.exactly ??= new TokenView(this.below, { state() {} });
    this.exactly.show(held);
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

  destroy() {
    this.deafen();
    this.cells.destroy();
    this.exactly?.destroy();
  }
}

const ends = ([start, stop]) => `${start}–${stop - 1}`;
