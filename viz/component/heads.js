// All heads of a model, layers down and heads across: a value in colour, or a small pattern each.

class Heads {
  constructor(root, on) {
    this.on = on;
    this.title = element("div", { class: "title" }, root);
    this.cells = new CellGrid(root);
    this.legend = element("div", { class: "legend" }, root);
    this.turn = 0;
  }

  async show(data) {
    const turn = ++this.turn;
    const [values, lower, upper, shown, maps] = await Promise.all([
      unpack(data.values, Float64Array), unpack(data.lower, Float64Array),
      unpack(data.upper, Float64Array), unpack(data.shown, Uint8Array), unpack(data.maps, Uint8Array),
    ]);
    if (turn !== this.turn) return;
    const heads = data.heads.length;
    this.title.textContent = data.title;
    const ranks = values && ranked(values, data.diverging);
    this.cells.show({
      label: `${data.title}: ${data.layers.length} layers, ${heads} heads a layer; arrow keys move, Enter picks`,
      rows: data.names ? [""] : data.layers.map((layer) => `L${layer}`),
      columns: data.names ?? data.heads.map((head) => `${data.letter}${head}`),
      smallest: maps ? 12 : 4,
      largest: maps ? 96 : 44,
      picked: data.picked,
      paint: (context, box) => (maps ? this.thumbnails(context, box, data, maps, shown) : this.colours(context, box, data, values, shown)),
      describe: (layer, head) => {
        const at = layer * heads + head;
        const name = data.names?.[head] ?? `L${data.layers[layer]}${data.letter}${data.heads[head]}`;
        if (data.absent.includes(layer)) return [name, "no attention map in this layer"];
        if (!values) return [name];
        const units = data.units && Number.isFinite(values[at]) ? ` ${data.units}` : "";
        const lines = [`${name}  ${amount(values[at])}${units}`];
        if (!Number.isFinite(values[at])) return lines;
        if (lower) lines.push(`95 % interval [${amount(lower[at])}, ${amount(upper[at])}]`);
        lines.push(ranks(at));
        return lines;
      },
      onPick: (layer, head) => this.on.pick([layer, head]),
    });
  }

  colours(context, box, data, values, shown) {
    const { left, top, cell, gap } = box;
    const heads = data.heads.length;
    context.textAlign = "center";
    const reach = Math.max(...values.filter(Number.isFinite).map(Math.abs));
    values.forEach((value, at) => {
      const x = left + (at % heads) * cell;
      const y = top + Math.floor(at / heads) * cell;
      const known = Number.isFinite(value);
      const rgb = known ? mix(data.colours, (value - data.low) / (data.high - data.low)) : null;
      context.globalAlpha = shown && !shown[at] ? 0.15 : 1;
      context.fillStyle = known ? css(rgb) : box.hatch;
      context.fillRect(x, y, cell - gap, cell - gap);
      if (known && cell >= 34) {
        const light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
        context.fillStyle = light ? "#111" : "#fff";
        context.fillText(short(value, reach), x + cell / 2, y + cell / 2, cell - 4);
      }
    });
    context.globalAlpha = 1;
    const missing = values.some((value, at) => !Number.isFinite(value) && !data.absent.includes(Math.floor(at / heads)));
    const hatched = [...(missing ? ["not measured"] : []), ...(data.absent.length ? ["no attention map in the layer"] : [])];
    legend(this.legend, data.colours.map((rgb) => css(rgb)), [amount(data.low), `${amount(data.high)} ${data.units}`], hatched);
  }

  thumbnails(context, box, data, maps, shown) {
    const { left, top, cell } = box;
    const heads = data.heads.length;
    const [rows, columns] = data.map_shape;
    const atlas = element("canvas", { width: columns * heads, height: rows * data.layers.length });
    const pen = atlas.getContext("2d");
    const rgb = weightColour(box.dark);
    const image = pen.createImageData(atlas.width, atlas.height);
    maps.forEach((code, at) => {
      const [head, inside] = [Math.floor(at / (rows * columns)), at % (rows * columns)];
      const y = Math.floor(head / heads) * rows + Math.floor(inside / columns);
      const x = (head % heads) * columns + (inside % columns);
      image.data.set([...rgb, code], 4 * (y * atlas.width + x));
    });
    pen.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = cell * box.ratio < columns;
    for (let head = 0; head < heads * data.layers.length; head++) {
      const [row, column] = [Math.floor(head / heads), head % heads];
      const [x, y, side] = [left + column * cell, top + row * cell, cell - (cell >= 24 ? 3 : 1)];
      context.globalAlpha = shown && !shown[head] ? 0.15 : 1;
      context.fillStyle = data.absent.includes(row) ? box.hatch : box.dark ? "rgba(255, 255, 255, 0.07)" : "rgba(0, 0, 0, 0.05)";
      context.fillRect(x, y, side, side);
      context.drawImage(atlas, column * columns, row * rows, columns, rows, x, y, side, side);
    }
    context.globalAlpha = 1;
    const stops = [css(rgb, 0), css(rgb)];
    const hatched = data.absent.length ? ["no attention map in the layer"] : [];
    legend(this.legend, stops, ["0", `${amount(data.high)} ${data.units} (colour by square root)`], hatched);
  }

  destroy() {
    this.cells.destroy();
  }
}

// The largest first; of a diverging score the largest size. Equal values share the better rank.
function ranked(values, diverging) {
  const size = (value) => (diverging ? Math.abs(value) : value);
  const sorted = Array.from(values.filter(Number.isFinite), size).sort((one, other) => other - one);
  const first = new Map();
  sorted.forEach((value, at) => first.has(value) || first.set(value, at + 1));
  const count = new Map();
  sorted.forEach((value) => count.set(value, (count.get(value) ?? 0) + 1));
  return (at) => {
    const value = size(values[at]);
    const tied = count.get(value) > 1 ? ` (${count.get(value)} tied)` : "";
    return `rank ${first.get(value)} of ${sorted.length}${tied}`;
  };
}

// As many decimals as tell a value from the others of the grid.
function short(value, reach) {
  if (reach >= 100 || reach < 0.005) return amount(value);
  return value.toFixed(reach >= 0.2 ? 2 : 3).replace(/^-(0\.?0*)$/, "$1");
}
