"""How often the page draws: what is told soon, and never so often that there is no time for anything else."""

from __future__ import annotations

from tests.page_browser import ShownPage

#: For how many milliseconds of how many a view is drawn that takes 50, while something new is told all the time.
_DRAWN = """async (base) => {
  const {changed, subscribe} = await import(`${base}/store.js`);
  let drawn = 0, over = false;
  const began = performance.now();
  const off = subscribe(() => {
    drawn += 1;
    const until = performance.now() + 50;
    while (performance.now() < until);
  });
  const tell = () => { for (let n = 0; n < 20; n += 1) changed(); if (!over) setTimeout(tell, 5); };
  tell();
  await new Promise((done) => setTimeout(done, 1500));
  over = true;
  off();
  return [drawn * 50, performance.now() - began];
}"""


def test_a_view_that_takes_long_to_draw_leaves_time_for_what_comes_in(operator: ShownPage):
    base = operator.page.evaluate("document.querySelector('script[type=module]').src").rpartition("/")[0]
    drawn, all_in_all = operator.page.evaluate(_DRAWN, base)
    assert 100 <= drawn <= all_in_all / 2 + 50
