// Queries at the left, keys at the right, and a line for every weight, as strong as the weight.

const ROW = 17;
const MOST = 4000;

class Lines {
  constructor(view) {
    this.view = view;
    const { queries, keys, crossed, body } = view;
    const label = "Tokens: queries left, keys right";
    const box = element("div", { class: "tokens", role: "group", tabindex: 0, "aria-label": label }, body);
    const width = body.clientWidth;
    const height = ROW * Math.max(queries.length, keys.length) + ROW;
    // Longer canvases than browsers draw are drawn less finely.
    const ratio = Math.min(window.devicePixelRatio || 1, 16000 / height);
    const canvas = element("canvas", { width: width * ratio, height: height * ratio, "aria-hidden": "true" }, box);
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const colour = (name) => getComputedStyle(body).getPropertyValue(name);
    const colours = [colour("--out-ink"), colour("--in-ink")];
    Object.assign(this, { context, width, height, colours, page: ink(body), outer: body.offsetWidth });
    const token = (event) => {
      const place = Math.floor(event.offsetY / ROW) - 1;
      const right = crossed && event.offsetX > width / 2;
      const names = right ? keys : queries;
      return place < 0 || place >= names.length ? null : place + (right ? queries.length : 0);
    };
    canvas.addEventListener("pointermove", (event) => view.look(token(event)));
    canvas.addEventListener("pointerleave", () => view.look(null));
    canvas.addEventListener("click", (event) => token(event) !== null && view.lock(token(event)));
  }

  // Draw the shares of the keys of the token in view, and of its queries; without one, all.
  draw(keys, queries) {
    const { context, width, height, page, colours, view } = this;
    const { query, key } = view.subject();
    const [left, right] = [0.3 * width, 0.7 * width];
    const middle = (place) => (place + 1.5) * ROW;
    context.clearRect(0, 0, width, height);
    const [plain, bold] = [font(view.body), font(view.body, "bold")];
    context.font = plain;
    context.textBaseline = "middle";
    context.globalAlpha = 1;
    context.fillStyle = page.css;
    const write = (names, side, x, align, subject) => {
      context.textAlign = align;
      context.fillText(side, x, ROW / 2);
      names.forEach((name, place) => {
        context.font = place === subject ? bold : plain;
        context.fillText(cut(name), x, middle(place));
      });
      context.font = plain;
    };
    write(view.queries, "query (destination)", left - 6, "right", query);
    write(view.keys, "key (source)", right + 6, "left", key);
    const line = (from, to, share, colour, dashes) => {
      if (share <= 0.02) return;
      context.globalAlpha = share;
      context.strokeStyle = colour;
      context.lineWidth = 1.5;
      context.setLineDash(dashes);
      context.beginPath();
      context.moveTo(left, middle(from));
      context.lineTo(right, middle(to));
      context.stroke();
    };
    if (query === null && key === null) {
      const all = [];
      view.queries.forEach((_, from) =>
        view.keys.forEach((_, to) => {
          const share = view.share(from, to);
          if (share > 0.02) all.push([share, from, to]);
        }),
      );
      // More are a surface, and seconds of drawing.
      all.sort(([one], [other]) => other - one);
      all.slice(0, MOST).forEach(([share, from, to]) => line(from, to, share, page.css, []));
      context.globalAlpha = 1;
      context.textAlign = "center";
      if (all.length > MOST) context.fillText(`the ${MOST} strongest of ${all.length} lines`, width / 2, ROW / 2);
    }
    queries.forEach((share, from) => line(from, key, share, colours[1], [5, 4]));
    keys.forEach((share, to) => line(query, to, share, colours[0], []));
    context.globalAlpha = 1;
    context.setLineDash([]);
  }
}
