// A pattern too long for its tokens: the whole of it in blocks, and a window that is chosen.

const HEAVIEST = 5;
const WHOLE = { map: "pooled_max", find: "", queries: null, keys: null };

class LongView extends BlockMap {
  constructor(root, on) {
    super();
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

  open(queries, keys, more = {}) {
    this.set({ queries, keys, ...more });
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

  destroy() {
    this.deafen();
    this.cells.destroy();
    this.exactly?.destroy();
  }
}
