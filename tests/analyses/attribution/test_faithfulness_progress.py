"""The bar of faithfulness is true where its passes were not foreseen."""

from headscope.analyses import faithfulness
from headscope.analyses._runtime.progress import reporting
from headscope.probes import capture, tasks


def test_the_bar_follows_the_prompts_where_passes_were_not_foreseen(bundled):
    task = tasks.make("ioi", tokenizer=bundled.tokenizer, n=4)
    held = capture(bundled, task, stats=("lse",))
    seen = []
    with reporting(lambda done, total: seen.append((done, total)), 1):
        faithfulness.run(held, bundled, task, other="", steps=2)
    whole = seen[-1][0]
    # As the prompts are about alike, so is the share at half of the work.
    half = [done / total for done, total in seen if 0.4 < done / whole < 0.6]
    assert half
    assert all(0.3 < share < 0.75 for share in half)
