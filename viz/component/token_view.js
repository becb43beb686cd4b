// The pattern of one head on the tokens of a prompt: as text, as a map, or as lines.

const MODES = ["Text", "Map", "Lines"];
const SCALES = { "0–1": "0 to 1", "row max": "row maximum", log: "log, from 0.0001" };

const START = { mode: "Text", scale: "row max", hide: false, token: null };

class TokenView {
  constructor(root, on) {
    this.on = on;
    this.state = { ...START };
    this.hover = null;
    this.turn = 0;
    this.title = element("div", { class: "title" }, root);
    const bar = element("div", { class: "toolbar" }, root);
    const tabs = element("div", { class: "tabs", role: "tablist", "aria-label": "How the pattern is drawn" }, bar);
    this.tabs = MODES.map((mode) => {
      const tab = element("button", { type: "button", role: "tab" }, tabs, mode);
      tab.addEventListener("click", () => this.set({ mode }));
      return tab;
    });
    const scale = element("label", {}, bar, "Scale ");
    this.scale = element("select", {}, scale);
    for (const [name, words] of Object.entries(SCALES)) element("option", { value: name }, this.scale, words);
    this.scale.addEventListener("change", () => this.set({ scale: this.scale.value }));
    const hide = element("label", {}, bar);
    this.hide = element("input", { type: "checkbox" }, hide);
    this.hideText = element("span", {}, hide);
    this.hide.addEventListener("change", () => this.set({ hide: this.hide.checked }));
    this.hint = element("div", { class: "legend" }, root);
    this.body = element("div", { class: "body" }, root);
    this.said = ["out", "in"].map((side) => element("p", { class: `said ${side}` }, root));
    this.spoken = element("div", { class: "spoken", role: "status" }, root);
    this.deafen = listen(this.body, (event) => !this.cells && this.key(event));
    this.watch = new ResizeObserver(() => {
      if (this.lines && this.body.offsetWidth !== this.lines.outer) this.draw();
    });
    this.watch.observe(this.body);
  }

  async show(data) {
    const turn = ++this.turn;
    const codes = await unpack(data.weights, Uint16Array);
    if (turn !== this.turn) return;
    const words = JSON.stringify([data.queries, data.keys]);
    // What a link asks for counts when it is asked for, not at every redraw.
    const given = JSON.stringify(data.state);
    const asked = given !== this.given;
    const lost = !asked && words !== this.words && this.state.token !== null;
    if (asked) this.state = { ...START, ...data.state };
    if (lost) this.state.token = null;
    Object.assign(this, { words, given, data });
    if (lost) this.on.state({ ...this.state });
    // What is drawn already stays, with how far it is scrolled.
    if (this.signature() === this.drawn) return;
    this.drawn = this.signature();
    this.queries = data.queries;
    this.keys = data.keys ?? data.queries;
    this.crossed = Boolean(data.keys);
    this.weights = Float64Array.from(codes, weight);
    this.hover = null;
    this.draw();
  }

  signature() {
    return JSON.stringify([this.data.weights, this.data.title, this.words, this.state, ink(this.body)]);
  }

  // The largest weight of every query, of what is not hidden.
  rows() {
    return this.queries.map((_, query) => {
      let most = 0;
      for (let key = this.hidden(0) ? 1 : 0; key < this.keys.length; key++) {
        most = Math.max(most, this.at(query, key) || 0);
      }
      return most || 1;
    });
  }

  at(query, key) {
    return this.weights[query * this.keys.length + key];
  }

  // Of a window into a longer text the first key is any token.
  hidden(key) {
    return this.state.hide && key === 0 && this.data.first[1] === 0;
  }

  // How strongly a weight is drawn, 0 to 1.
  share(query, key) {
    const value = this.at(query, key);
    if (!(value > 0) || this.hidden(key)) return 0;
    if (this.state.scale === "row max") return Math.min(value / this.largest[query], 1);
    const part = value / this.data.high;
    return this.state.scale === "log" ? Math.max(0, 1 + Math.log10(part) / 4) : Math.min(part, 1);
  }

  set(change) {
    Object.assign(this.state, change);
    if ("token" in change) this.mark();
    else this.draw();
    this.drawn = this.signature();
    this.on.state({ ...this.state });
  }

  // The token in view: the locked one, the hovered one, or of a text the last query.
  place() {
    return this.state.token ?? this.hover ?? (this.spans ? this.queries.length - 1 : null);
  }

  // The token in view as query and as key; in cross-attention it is one of the two.
  subject() {
    const at = this.place();
    if (at === null) return { query: null, key: null };
    if (!this.crossed) return { query: at, key: at };
    const count = this.queries.length;
    return at < count ? { query: at, key: null } : { query: null, key: at - count };
  }

  draw() {
    const { mode, scale, hide } = this.state;
    const dark = ink(this.body).dark;
    this.largest = this.rows();
    this.body.parentNode.classList.toggle("dark", dark);
    this.title.textContent = this.data.title;
    this.tabs.forEach((tab, at) => tab.setAttribute("aria-selected", MODES[at] === mode));
    this.scale.value = scale;
    this.hide.checked = hide;
    this.hide.parentNode.hidden = this.data.first[1] !== 0;
    this.hideText.textContent = ` Hide first token (${this.keys[0]})`;
    this.cells?.destroy();
    this.cells = this.lines = this.spans = null;
    this.body.replaceChildren();
    this.body.className = `body ${mode.toLowerCase()}`;
    if (mode === "Map") {
      this.map(dark);
    } else {
      this.hint.replaceChildren();
      element("span", { class: "key out" }, this.hint, "attends to (solid)");
      element("span", { class: "key in" }, this.hint, "attended by (dashed)");
      element("span", {}, this.hint, "hover a token; click or Enter locks it, Escape frees it");
      if (mode === "Text") this.text();
      else this.lines = new Lines(this);
    }
    this.mark();
  }

  // Where the map outlines the locked token: at its own cell.
  locked() {
    const { token } = this.state;
    return token === null || this.crossed ? null : [token, token];
  }

  lock(at) {
    this.set({ token: at === this.state.token ? null : at });
  }

  look(at, spoken) {
    if (at === this.hover) return;
    this.hover = at;
    if (this.state.token === null || spoken) this.mark(spoken);
  }

  // Arrow keys move over the tokens of Text and Lines.
  key(event) {
    const count = this.queries.length + (this.crossed ? this.keys.length : 0);
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const from = this.hover ?? this.state.token ?? (step > 0 ? -1 : count);
    if (step) {
      if (this.state.token !== null) this.set({ token: null });
      this.look(Math.min(Math.max(from + step, 0), count - 1), true);
    } else if ((event.key === "Enter" || event.key === " ") && this.hover !== null) {
      this.lock(this.hover);
    } else if (event.key === "Escape") {
      this.hover = null;
      if (this.state.token !== null) this.set({ token: null });
      else this.mark();
    } else {
      return false;
    }
    return true;
  }

  list(names, first, label) {
    const box = element("div", { class: "tokens", role: "listbox", tabindex: 0, "aria-label": label }, this.body);
    names.forEach((name, at) => {
      const span = element("span", { role: "option", id: `token-${first + at}` }, box, name);
      span.addEventListener("pointerenter", () => this.look(first + at));
      span.addEventListener("click", () => this.lock(first + at));
      this.spans.push(span);
      if (name.endsWith("⏎")) element("br", {}, box);
    });
    box.addEventListener("pointerleave", () => this.look(null));
    return box;
  }

  text() {
    this.spans = [];
    if (this.crossed) element("div", { class: "side" }, this.body, "Queries (destination)");
    this.boxes = [this.list(this.queries, 0, this.crossed ? "Queries" : "Tokens")];
    if (!this.crossed) return;
    element("div", { class: "side" }, this.body, "Keys (source)");
    this.boxes.push(this.list(this.keys, this.queries.length, "Keys"));
  }

  // Colour what belongs to the token in view, and say it in words.
  mark(spoken) {
    const { query, key } = this.subject();
    const at = this.place();
    const keys = query === null ? [] : this.keys.map((_, other) => this.share(query, other));
    const queries = key === null ? [] : this.queries.map((_, other) => this.share(other, key));
    if (this.spans) {
      const first = this.crossed ? this.queries.length : 0;
      this.spans.forEach((span, place) => {
        const out = keys[place - first] ?? 0;
        // A token's weight on itself is drawn once, as what it attends to.
        const from = place === at && !this.crossed ? 0 : (queries[place] ?? 0);
        span.style.setProperty("--out", out > 0.02 ? `${Math.round(100 * out)}%` : "0%");
        span.style.setProperty("--in", from > 0.02 ? `${Math.round(100 * from)}%` : "0%");
        span.classList.toggle("subject", place === at);
        span.setAttribute("aria-selected", place === this.state.token);
      });
      for (const box of this.boxes) {
        if (at === null) box.removeAttribute("aria-activedescendant");
        else box.setAttribute("aria-activedescendant", `token-${at}`);
      }
    }
    if (this.lines) this.lines.draw(keys, queries);
    if (this.cells) this.cells.place(this.cells.outline, this.locked());
    const name = (names, place) => `${this.data.first[names === this.keys ? 1 : 0] + place} ${names[place]}`;
    const strongest = (names, read) =>
      names.map((_, place) => [read(place), place]).filter(([value]) => value > 0).sort((one, other) => other[0] - one[0])
        .slice(0, 6).map(([value, place]) => `${name(names, place)}  ${amount(value)}`).join(" · ") || "nothing";
    const out = query === null ? "" : `${name(this.queries, query)} attends to: ${strongest(this.keys, (place) => this.at(query, place))}`;
    const from = key === null ? "" : `${name(this.keys, key)} is attended by: ${strongest(this.queries, (place) => this.at(place, key))}`;
    [out, from].forEach((words, side) => (this.said[side].textContent = words));
    if (spoken) this.spoken.textContent = [out, from].filter(Boolean).join("; ");
  }

  map(dark) {
    const { queries, keys, data, state } = this;
    const rgb = weightColour(dark);
    this.cells = new CellGrid(this.body);
    const named = (names, place, side) => `${data.first[side] + place} ${names[place]}`;
    this.cells.show({
      label: `${data.title}: ${queries.length} queries (rows), ${keys.length} keys (columns); arrow keys move, Enter locks the query`,
      rows: queries.map(cut),
      columns: keys.map(cut),
      first: data.first,
      upright: true,
      smallest: 1,
      largest: Math.min(32, Math.max(1, 640 / Math.max(queries.length, keys.length))),
      picked: this.locked(),
      paint: (context, box) => {
        const picture = element("canvas", { width: keys.length, height: queries.length });
        const pen = picture.getContext("2d");
        const image = pen.createImageData(keys.length, queries.length);
        const { left, top, cell } = box;
        context.fillStyle = box.hatch;
        context.fillRect(left, top, cell * keys.length, cell * queries.length);
        queries.forEach((_, query) =>
          keys.forEach((_, key) => {
            const value = this.at(query, key);
            if (value > 0 && !this.hidden(key)) {
              context.clearRect(left + key * cell, top + query * cell, cell, cell);
              image.data.set([...rgb, 255 * this.share(query, key)], 4 * (query * keys.length + key));
            }
          }),
        );
        pen.putImageData(image, 0, 0);
        context.imageSmoothingEnabled = false;
        context.drawImage(picture, left, top, cell * keys.length, cell * queries.length);
      },
      describe: (query, key) => {
        const value = this.at(query, key);
        const words = value === 0 ? "0: masked, or too small for the model's numbers" : `${amount(value)} ${data.units}`;
        return [this.hidden(key) ? `hidden in the map: ${words}` : words, `query ${named(queries, query, 0)}`, `key ${named(keys, key, 1)}`];
      },
      onMove: (at) => this.look(at && at[0]),
      onPick: (query) => this.lock(query),
    });
    const ends = { "0–1": ["0", amount(data.high)], "row max": ["0", "largest of the row"], log: ["0.0001", amount(data.high)] };
    const hatched = this.hidden(0) ? `masked (exactly 0), and the hidden token ${keys[0]}` : "masked (exactly 0)";
    legend(this.hint, [css(rgb, 0), css(rgb)], ends[state.scale], [hatched]);
    element("span", {}, this.hint, "rows: query (destination), columns: key (source)");
  }

  destroy() {
    this.deafen();
    this.watch.disconnect();
    this.cells?.destroy();
  }
}

const cut = (name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);

// A weight is sent as its three significant digits: 900 codes a decade from 1e-40; 0 is exactly 0.
function weight(code) {
  if (code === 0) return 0;
  if (code === 65535) return NaN;
  return Number(`${100 + ((code - 1) % 900)}e${Math.floor((code - 1) / 900) - 42}`);
}
