// Cells in rows and columns on a canvas: hit by cell, moved over by arrow keys, named for screen
// readers. A view gives what to paint and what to say of a cell.

// The font of the page, at the size of labels.
const font = (node, weight = "normal") => `${weight} 11px ${getComputedStyle(node).fontFamily}`;
const MOVES = {
  ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
  Home: [0, -Infinity], End: [0, Infinity], PageUp: [-Infinity, 0], PageDown: [Infinity, 0],
};

class CellGrid {
  constructor(root) {
    this.scroll = element("div", { class: "scroll" }, root);
    this.grid = element("div", { class: "cells", role: "grid", tabindex: 0 }, this.scroll);
    this.canvas = element("canvas", { "aria-hidden": "true" }, this.grid);
    this.outline = element("div", { class: "picked", "aria-hidden": "true" }, this.grid);
    this.row = element("div", { role: "row" }, this.grid);
    // The one cell that screen readers are told of: the one under the cursor.
    this.cursor = element("div", { class: "cursor", role: "gridcell", id: "cell" }, this.row);
    this.grid.setAttribute("aria-activedescendant", "cell");
    this.tip = element("div", { class: "tip", "aria-hidden": "true" }, root);
    this.status = element("div", { class: "spoken", role: "status" }, root);
    this.canvas.addEventListener("pointermove", (event) => this.move(this.hit(event)));
    this.canvas.addEventListener("pointerleave", () => this.move(null));
    this.canvas.addEventListener("click", (event) => this.pick(this.hit(event)));
    this.deafen = listen(this.grid, (event) => this.key(event));
    this.grid.addEventListener("focus", () => {
      if (this.grid.matches(":focus-visible")) this.move(this.at ?? this.spec?.picked ?? [0, 0]);
    });
    this.grid.addEventListener("blur", () => this.move(null));
    this.watch = new ResizeObserver(() => {
      if (this.scroll.offsetWidth !== this.outer) this.layout();
    });
    this.watch.observe(this.scroll);
  }

  // spec: label, rows, columns (names), first (positions of the first row and column, of tokens),
  // smallest, largest (px a cell), upright (names of columns), fluid (cells may end between pixels),
  // margin (px to paint on, right and below),
  // paint(context, box), describe(row, column) -> lines, picked, onPick, onMove
  show(spec) {
    this.spec = spec;
    this.grid.setAttribute("aria-label", spec.label);
    this.grid.setAttribute("aria-rowcount", spec.rows.length);
    this.grid.setAttribute("aria-colcount", spec.columns.length);
    this.layout();
  }

  layout() {
    const { spec } = this;
    this.width = this.scroll.clientWidth;
    this.outer = this.scroll.offsetWidth;
    if (!spec || !this.width) return;
    const ratio = window.devicePixelRatio || 1;
    const context = this.canvas.getContext("2d");
    context.font = font(this.grid);
    const snap = (length) => Math.floor(length * ratio) / ratio;
    const widest = (names) => Math.ceil(Math.max(...names.map((name) => context.measureText(name).width)));
    const across = widest(spec.columns);
    const left = widest(spec.rows) + 8;
    const top = spec.upright ? across + 8 : 18;
    // Edges of cells lie on pixels of the screen, so that a hit and what is seen agree.
    const margin = 3 + (spec.margin ?? 0);
    const room = Math.min((this.width - left - margin) / spec.columns.length, spec.largest);
    const cell = Math.max(spec.fluid ? room : snap(room), spec.smallest);
    this.box = { left, top, cell, gap: cell >= 8 ? 1 : 0 };
    const width = left + cell * spec.columns.length + margin;
    const height = top + cell * spec.rows.length + margin;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const page = ink(this.grid);
    this.grid.classList.toggle("dark", page.dark);
    context.font = font(this.grid);
    context.fillStyle = page.css;
    this.names(context, spec.rows, 13, 0, (name, middle) => {
      context.textAlign = "right";
      context.fillText(name, left - 5, top + middle);
    });
    this.names(context, spec.columns, spec.upright ? 12 : across + 6, 1, (name, middle) => {
      if (!spec.upright) {
        context.textAlign = "center";
        context.fillText(name, left + middle, top - 9);
        return;
      }
      context.save();
      context.translate(left + middle, top - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(name, 0, 0);
      context.restore();
    });
    spec.paint(context, { ...this.box, ...page, ratio, hatch: hatch(context, page.dark) });
    this.place(this.outline, spec.picked);
    this.name(spec.picked ?? [0, 0]);
    this.move(null);
  }

  // Names, as many as there is room for; of tokens that have none the positions.
  names(context, names, room, side, write) {
    let step = 1;
    while (step * this.box.cell < room) step *= 2;
    context.textBaseline = "middle";
    for (let at = 0; at < names.length; at += step) {
      const name = step > 1 && this.spec.first ? String(this.spec.first[side] + at) : names[at];
      write(name, (at + 0.5) * this.box.cell);
    }
  }

  place(node, at) {
    // Not hidden: screen readers need a cell in the row.
    node.style.opacity = at ? 1 : 0;
    if (!at) return;
    const { left, top, cell } = this.box;
    const [y, x] = [top + at[0] * cell, left + at[1] * cell];
    Object.assign(node.style, { left: `${x}px`, top: `${y}px`, width: `${cell}px`, height: `${cell}px` });
  }

  hit(event) {
    const [row, column] = this.spot(event);
    const { rows, columns } = this.spec;
    const inside = row >= 0 && column >= 0 && row < rows.length && column < columns.length;
    return inside ? [row, column] : null;
  }

  // The cell that is nearest to an event, for what began inside.
  near(event) {
    return this.bounded(this.spot(event));
  }

  bounded([row, column]) {
    const { rows, columns } = this.spec;
    const within = (place, size) => Math.min(Math.max(place, 0), size - 1);
    return [within(row, rows.length), within(column, columns.length)];
  }

  spot(event) {
    const frame = this.canvas.getBoundingClientRect();
    // Browsers put a canvas on whole pixels, wherever the layout has it.
    const ratio = window.devicePixelRatio || 1;
    const snap = (place) => Math.round(place * ratio) / ratio;
    const column = Math.floor((event.clientX - snap(frame.left) - this.box.left) / this.box.cell);
    const row = Math.floor((event.clientY - snap(frame.top) - this.box.top) / this.box.cell);
    return [row, column];
  }

  move(at, spoken = false) {
    if (String(at) === String(this.at) && !spoken) return;
    this.at = at;
    this.place(this.cursor, at);
    this.tip.hidden = !at;
    this.canvas.style.cursor = at ? "pointer" : "";
    if (this.spec?.onMove) this.spec.onMove(at);
    if (!at) return;
    const lines = this.name(at);
    if (spoken) this.status.textContent = lines.join(", ");
    this.tip.replaceChildren();
    lines.forEach((line, i) => element(i ? "div" : "b", {}, this.tip, line));
    const { left, top, cell } = this.box;
    const x = left + (at[1] + 1) * cell + 8 - this.scroll.scrollLeft;
    const wide = this.tip.offsetWidth;
    const fits = x + wide <= this.width;
    const beside = left + at[1] * cell - wide - 8 - this.scroll.scrollLeft;
    const y = this.scroll.offsetTop + top + at[0] * cell - this.scroll.scrollTop + (fits || beside >= 0 ? 0 : cell + 6);
    Object.assign(this.tip.style, { left: `${fits ? x : Math.max(beside, 0)}px`, top: `${y}px` });
  }

  // Say what a cell is to screen readers; returns the lines.
  name(at) {
    const lines = this.spec.describe(...at);
    this.row.setAttribute("aria-rowindex", at[0] + 1);
    this.cursor.setAttribute("aria-colindex", at[1] + 1);
    this.cursor.setAttribute("aria-label", lines.join(", "));
    return lines;
  }

  pick(at) {
    if (!at || !this.spec.onPick) return;
    this.spec.picked = at;
    this.place(this.outline, at);
    this.spec.onPick(...at);
  }

  key(event) {
    const at = this.at ?? this.spec.picked ?? [0, 0];
    if (MOVES[event.key]) {
      this.step(MOVES[event.key]);
    } else if (event.key === "Enter" || event.key === " ") {
      this.pick(at);
    } else if (event.key === "Escape") {
      this.move(null);
    } else {
      return false;
    }
    return true;
  }

  step([down, across]) {
    const at = this.at ?? this.spec.picked ?? [0, 0];
    this.move(this.bounded([at[0] + down, at[1] + across]), true);
    this.cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  destroy() {
    this.deafen();
    this.watch.disconnect();
  }
}
