// The tokens of a text as several methods see them, one below the other.

class RelevanceView {
  constructor(root, on) {
    this.root = root;
    this.title = element("div", { class: "title" }, root);
    const legend = element("div", { class: "legend" }, root);
    element("span", { class: "for" }, legend, "for the answer (solid)");
    element("span", { class: "against" }, legend, "against it (dotted)");
    element("span", {}, legend, "each method on its own scale; ◆ causal; hover a token, click locks it");
    this.said = element("p", { class: "said out" }, root);
    this.body = element("div", { class: "relevances", tabindex: 0, role: "group" }, root);
    this.spoken = element("div", { class: "spoken", role: "status" }, root);
    this.hover = this.locked = null;
    this.deafen = listen(this.body, (event) => this.key(event));
  }

  show(data) {
    const drawn = JSON.stringify([data, ink(this.body)]);
    if (drawn === this.drawn) return;
    Object.assign(this, { data, drawn, hover: null, locked: null });
    this.root.classList.toggle("dark", ink(this.body).dark);
    this.title.textContent = data.title;
    this.body.setAttribute("aria-label", `${data.title}: ${data.tokens.length} tokens by ${data.rows.length} methods; arrow keys move over tokens`);
    this.body.replaceChildren();
    this.spans = data.rows.map((row) => {
      const box = element("div", { class: "relevance" }, this.body);
      const head = element("div", { class: "side" }, box);
      element("b", {}, head, `${row.causal ? "◆" : "○"} ${row.name}`);
      if (row.note) element("span", {}, head, ` · ${row.note}`);
      const line = element("div", { class: "line" }, box);
      return data.tokens.map((token, at) => {
        const span = element("span", {}, line, token);
        const share = row.shares[at];
        if (share === null) span.classList.add("missing");
        else if (Math.abs(share) > 0.02) {
          span.classList.add(share > 0 ? "for" : "against");
          span.style.setProperty("--share", `${Math.round(100 * Math.abs(share))}%`);
        }
        span.addEventListener("pointerenter", () => this.look(at));
        span.addEventListener("click", () => this.lock(at));
        if (token.endsWith("⏎")) element("br", {}, line);
        return span;
      });
    });
    this.body.addEventListener("pointerleave", () => this.look(null));
    this.mark();
  }

  look(at) {
    this.hover = at;
    if (this.locked === null) this.mark();
  }

  lock(at) {
    this.locked = this.locked === at ? null : at;
    this.mark();
  }

  key(event) {
    const last = this.data.tokens.length - 1;
    const from = this.locked ?? this.hover;
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (step) this.locked = from === null ? (step > 0 ? 0 : last) : Math.min(Math.max(from + step, 0), last);
    else if (event.key === "Escape") this.locked = null;
    else return false;
    this.mark();
    this.spoken.textContent = this.said.textContent;
    return true;
  }

  // Outline the token in view in every method, and say what each makes of it.
  mark() {
    const at = this.locked ?? this.hover;
    for (const row of this.spans) row.forEach((span, place) => span.classList.toggle("subject", place === at));
    const parts = at === null ? [] : this.data.rows.filter((row) => row.shares[at] !== null)
      .map((row) => `${row.name} ${amount(row.shares[at])}`);
    this.said.textContent = at === null ? "" : `${at} ${this.data.tokens[at]}: ${parts.join(" · ")}`;
  }

  destroy() {
    this.deafen();
  }
}
