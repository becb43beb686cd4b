// Small patterns of several heads, and the picked one on its tokens.
class AttentionHeads {
  constructor(root, on) {
    this.heads = new Heads(element("div", {}, root), { pick: ([layer, head]) => this.pick(layer, head) });
    this.tokens = new TokenView(element("div", {}, root), on);
  }

  show(data) {
    this.data = data;
    const [layer, head] = data.heads.picked;
    return Promise.all([this.heads.show(data.heads), this.pick(layer, head)]);
  }

  pick(layer, head) {
    const { heads, tokens, weights } = this.data;
    const title = `${tokens.title}: L${heads.layers[layer]}${heads.letter}${heads.heads[head]}`;
    return this.tokens.show({ ...tokens, title, weights: weights[layer * heads.heads.length + head] });
  }

  destroy() {
    this.heads.destroy();
    this.tokens.destroy();
  }
}
