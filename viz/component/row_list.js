// Rows in groups: a name, how large, and tokens with one of them marked; a pick goes to Python.

class RowList {
  constructor(root, on) {
    this.on = on;
    this.title = element("div", { class: "title" }, root);
    this.box = element("div", { class: "rows", role: "listbox", tabindex: 0 }, root);
    this.at = null;
    this.deafen = listen(this.box, (event) => this.key(event));
    this.box.addEventListener("blur", () => this.move(null));
    this.watch = new ResizeObserver(() => this.centre());
    this.lanes = [];
    this.watch.observe(this.box);
  }

  show(data) {
    this.data = data;
    this.title.textContent = data.title;
    this.box.setAttribute("aria-label", `${data.title}; arrow keys move, Enter picks`);
    this.rows = [];
    this.nodes = [];
    this.lanes = [];
    this.at = null;
    const kept = this.box.scrollTop;
    this.box.replaceChildren();
    data.groups.forEach(({ title, rows }, number) => {
      const group = element("div", { role: "group", "aria-labelledby": `group-${number}` }, this.box);
      element("div", { class: "side", id: `group-${number}` }, group, title).hidden = !title;
      for (const row of rows) this.add(group, row);
    });
    this.box.scrollTop = kept;
    this.centre();
  }

  // Of a line that is too long, the part around the marked token.
  centre() {
    for (const lane of this.lanes) {
      const mark = lane.querySelector("mark");
      if (mark) lane.scrollLeft = mark.offsetLeft - lane.offsetLeft - (lane.clientWidth - mark.offsetWidth) / 2;
    }
  }

  add(group, row) {
    const at = this.rows.push(row) - 1;
    const picked = JSON.stringify(row.id) === JSON.stringify(this.data.picked);
    const node = element("div", { class: "row", role: "option", id: `row-${at}`, "aria-selected": picked }, group);
    this.nodes.push(node);
    if (row.hint) node.title = row.hint;
    element("span", { class: "prefix" }, node, row.prefix);
    if (row.name) element("b", {}, node, row.name);
    if (row.share !== null) {
      const meter = element("span", { class: "meter", "aria-hidden": "true" }, node);
      element("span", {}, meter).style.width = `${100 * Math.min(Math.max(row.share, 0), 1)}%`;
    }
    if (row.words.length) {
      const lane = element("span", { class: "lane" }, node);
      row.words.forEach((word, place) => element(place === row.at ? "mark" : "span", {}, lane, word));
      node.classList.add("laned");
      this.lanes.push(lane);
    }
    element("span", { class: "tail" }, node, row.tail);
    node.addEventListener("click", () => this.pick(at));
  }

  move(at) {
    if (this.at !== null) this.nodes[this.at]?.classList.remove("active");
    this.at = at;
    if (at === null) return this.box.removeAttribute("aria-activedescendant");
    this.nodes[at].classList.add("active");
    this.nodes[at].scrollIntoView({ block: "nearest" });
    this.box.setAttribute("aria-activedescendant", `row-${at}`);
  }

  pick(at) {
    this.on.pick(this.rows[at].id);
  }

  key(event) {
    const last = this.rows.length - 1;
    const from = this.at ?? this.nodes.findIndex((node) => node.ariaSelected === "true");
    const to = { ArrowDown: from + 1, ArrowUp: from < 0 ? last : from - 1, Home: 0, End: last }[event.key];
    if (to !== undefined) this.move(Math.min(Math.max(to, 0), last));
    else if ((event.key === "Enter" || event.key === " ") && this.at !== null) this.pick(this.at);
    else if (event.key === "Escape") this.move(null);
    else return false;
    return true;
  }

  destroy() {
    this.deafen();
    this.watch.disconnect();
  }
}
