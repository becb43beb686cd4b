// Puts a view into a root; `on` hears of picks and of what a link should carry.

const VIEWS = { heads: Heads, token_view: TokenView, attention_heads: AttentionHeads, row_list: RowList, long_view: LongView, relevance_view: RelevanceView };

function mount(root, view, on) {
  const box = element("div", { class: `headscope ${view.kind}` }, root);
  const made = new VIEWS[view.kind](box, on);
  return { show: (data) => made.show(data), destroy: () => (made.destroy(), box.remove()) };
}
